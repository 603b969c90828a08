from __future__ import annotations

import re
from pathlib import Path

import pytest

import dfqbench
from dfqbench.run.plan.cell import QUANT_IN_SYNTH
from dfqbench.run.plan.identity import canonical, derived_seed, host_code, identity


def test_identity_depends_on_values_and_not_on_the_order_of_keys() -> None:
    assert identity({"a": 1, "b": [1, 2]}) == identity({"b": [1, 2], "a": 1})
    assert identity({"a": 1}) != identity({"a": 1.5})
    with pytest.raises(ValueError, match="Out of range"):
        canonical({"lr": float("nan")})


def test_seeds_differ_by_scope_and_fit_torch() -> None:
    seeds = {derived_seed("key", *scope) for scope in [(), ("a",), ("b",), ("a", 1), ("a", 2)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed("key", "a") == derived_seed("key", "a")


def test_source_identity_covers_every_file_of_quant_that_synth_imports() -> None:
    root = Path(dfqbench.__file__).parent
    assert host_code("quant") != host_code("quant", "quantizers") != host_code("quantizers")
    waiting = sorted((root / "synth").rglob("*.py"))
    imported: set[str] = set()
    while waiting:
        text = waiting.pop().read_text()
        assert set(re.findall(r"^from dfqbench\.(\w+)", text, re.MULTILINE)) <= {"api", "quant", "synth"}
        new = set(re.findall(r"^from dfqbench\.quant\.(\w+) import", text, re.MULTILINE)) - imported
        imported |= new
        waiting += [root / "quant" / f"{name}.py" for name in new]
    assert {f"quant/{name}.py" for name in imported} == set(QUANT_IN_SYNTH)
