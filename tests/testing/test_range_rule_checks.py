"""Every check of range rules fails for one made to break it, and the host's own rules pass all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dfqbench.api import UsageError
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.testing import conformance
from dfqbench.testing.conformance import RANGE_RULE_CHECKS, RangeRuleUnderTest

FAULTY = """
import torch
from dfqbench.api import Offer, hookimpl
from dfqbench.quant import Observer

class NeedsArgument(Observer):
    def __init__(self, share):
        super().__init__()

class Pair(Observer):
    def forward(self, x):
        return x.aminmax()

class Vector(Pair):
    def forward(self, x):
        return tuple(end.view(1) for end in x.aminmax())

class Backwards(Pair):
    def forward(self, x):
        return tuple(reversed(tuple(x.aminmax())))

class Overwrites(Pair):
    def forward(self, x):
        return tuple(x.mul_(2).aminmax())

class Forgets(Pair):
    high = 0.0
    def forward(self, x):
        self.high = max(self.high, float(x.max()))
        return torch.zeros(()), torch.tensor(self.high)

class Alone(Pair):
    def forward(self, x):
        return x.max()

OFFERED = {"needs-argument": NeedsArgument, "vector": Vector, "backwards": Backwards,
    "overwrites": Overwrites, "forgets": Forgets, "alone": Alone, "nothing": 3}

@hookimpl
def dfqbench_range_rules():
    return [Offer(name, f":{getattr(rule, '__name__', 'OFFERED')}") for name, rule in OFFERED.items()]
"""
BY_NAME = {check.name: check for check in RANGE_RULE_CHECKS}


@pytest.fixture
def plugins(tmp_path: Path) -> Plugins:
    file = tmp_path / "faulty.py"
    file.write_text(FAULTY, encoding="utf-8")
    loaded = load_plugins([file])
    assert loaded.broken == []
    return loaded


@pytest.mark.parametrize(
    ("name", "check", "message"),
    [
        ("nothing", "contract", "is no observer; derive the class"),
        ("needs-argument", "contract", "its constructor raised TypeError"),
        ("alone", "ranges", "forward returned a Tensor; return two tensors"),
        ("alone", "students", "calibration raised "),
        ("vector", "ranges", r"its range of normal values has the shapes \(1,\)"),
        ("backwards", "ranges", "its range of normal values is "),
        ("overwrites", "ranges", "forward changed normal values"),
        ("forgets", "state", "gives other ranges; keep everything"),
    ],
)
def test_broken_rule_fails(plugins: Plugins, name: str, check: str, message: str) -> None:
    finding = conformance.run_check(BY_NAME[check], RangeRuleUnderTest(plugins, name))
    assert finding.status == "failed"
    assert re.search(message, finding.message)


RULES = ["minmax", "ema", "mean", "percentile:99.9", "mse", "sigma"]

for rule in RULES:
    name = f"Test{rule.partition(':')[0].title()}"
    globals()[name] = type(name, (conformance.PluginChecks,), {"range_rule": rule})


def test_examine_finds_a_range_rule_and_names_what_there_is(plugins: Plugins) -> None:
    findings = list(conformance.examine(plugins, "minmax"))
    assert [(finding.check, finding.status) for finding in findings] == [(name, "ok") for name in BY_NAME]
    failed = [finding.check for finding in conformance.examine(plugins, "nothing") if finding.status == "not run"]
    assert failed == ["ranges", "state", "students", "levels"]
    with pytest.raises(UsageError, match="unknown method, quantizer or range rule 'minimax'; did you mean minmax"):
        list(conformance.examine(plugins, "minimax"))
