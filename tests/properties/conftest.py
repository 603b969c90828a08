"""Property tests: reproducible and short here, with many examples where DFQBENCH_EXAMPLES names a number."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

EXAMPLES = os.environ.get("DFQBENCH_EXAMPLES")
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

settings.register_profile(
    "gate", deadline=None, max_examples=60, derandomize=True, database=None, suppress_health_check=SLOW
)
settings.register_profile("thorough", settings.get_profile("gate"), max_examples=int(EXAMPLES or 5_000))
settings.register_profile("thorough", settings.get_profile("thorough"), derandomize=False, print_blob=True)
settings.load_profile("thorough" if EXAMPLES else "gate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a module; each example writes its file anew."""
    return tmp_path_factory.mktemp("examples")
