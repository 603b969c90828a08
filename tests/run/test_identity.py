"""Identities: the same for the same facts, another for any other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import dfqbench
from dfqbench.run.plan.cell import QUANT_IN_SYNTH
from dfqbench.run.plan.identity import canonical, derived_seed, host_code, identity


def test_order_of_keys_does_not_matter() -> None:
    assert identity({"a": 1, "b": [1, 2]}) == identity({"b": [1, 2], "a": 1})
    assert identity({"a": 1}) != identity({"a": 1.5})


def test_nan_has_no_identity() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        canonical({"lr": float("nan")})


def test_seeds_differ_by_scope_and_fit_torch() -> None:
    seeds = {derived_seed("key", *scope) for scope in [(), ("a",), ("b",), ("a", 1), ("a", 2)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed("key", "a") == derived_seed("key", "a")


def test_packages_have_different_code() -> None:
    assert host_code("quant") != host_code("quant", "quantizers") != host_code("quantizers")


def test_images_depend_on_all_the_code_that_makes_them() -> None:
    """Every file of `quant` that `synth` imports, directly or through another, is in a source's identity."""
    root = Path(dfqbench.__file__).parent
    waiting = sorted((root / "synth").rglob("*.py"))
    found: set[str] = set()
    while waiting:
        text = waiting.pop().read_text()
        assert set(re.findall(r"^from dfqbench\.(\w+)", text, re.MULTILINE)) <= {"api", "quant", "synth"}
        for name in re.findall(r"^from dfqbench\.quant\.(\w+) import", text, re.MULTILINE):
            if name not in found:
                found.add(name)
                waiting.append(root / "quant" / f"{name}.py")
    assert {f"quant/{name}.py" for name in found} == set(QUANT_IN_SYNTH)
