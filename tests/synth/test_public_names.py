from __future__ import annotations

import subprocess
import sys

import pytest

import dfqbench.synth


def test_every_public_name_is_there() -> None:
    for name in dfqbench.synth.__all__:
        assert getattr(dfqbench.synth, name) is not None
    assert set(dfqbench.synth._HOME) == set(dfqbench.synth.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dfqbench.synth.nothing  # noqa: B018


def test_parameters_need_no_torch() -> None:
    code = "import sys; from dfqbench.synth import GeneratorParams, TrainingPlan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
