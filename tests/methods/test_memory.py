"""What a step of the live methods takes of memory at ImageNet's shape."""

from __future__ import annotations

import pytest

from dfqbench.run.store.environment import resolve_precision
from isolated import isolated, resident_mib
from shapes import SHAPES

MOST_MIB = 8 * 1024


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_imagenet_step_fits_in_eight_gib() -> None:
    # Batch 16 at 224 x 224, generator and student. ACQ passes the teacher most often: it needs the most of the four.
    needed = isolated(resident_mib, SHAPES["imagenet"], resolve_precision("auto", "cpu"), "acq")
    assert SHAPES["imagenet"].batch == 16
    assert 500 < needed < MOST_MIB
