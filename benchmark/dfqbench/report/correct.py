"""Per-image correctness, as records keep it: one bit an image, base64, in the order of the evaluation set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqbench.api.errors import InputError
from dfqbench.run.evaluate.accuracy import unpacked
from dfqbench.run.store.record import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def correctness(record: Record) -> NDArray[np.bool_]:
    """Whether the student gave each image its label: bool (n,).

    Raises:
        InputError: the record has no bits, or they do not fit its number of images and its top-1.
    """
    cell, images, top1 = record.cell_id or "unknown", record.dataset.n, record.top1
    if not record.correct or not images or top1 is None:
        raise InputError(f"cell {cell} has no answer for each image", "run it again")
    try:
        flags = unpacked(record.correct, images)
    except ValueError:
        flags = None
    if flags is None or abs(100 * flags.mean() - top1) > 1e-6:
        raise InputError(f"the answers for each image of cell {cell} do not fit its top-1", "run it again")
    return flags


def evaluated_on(record: Record) -> tuple[object, ...]:
    """What is the same where two records were evaluated on the same images in the same order."""
    data = record.dataset
    return data.name, data.sha256, data.n, data.subset
