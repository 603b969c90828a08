"""Every check of quantizers fails for one made to break it, says what to change, and passes for a sound one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dfqbench.plugins import Plugins, load_plugins
from dfqbench.testing import conformance
from dfqbench.testing.conformance import QUANTIZER_CHECKS, Finding, QuantizerUnderTest

FAULTY = Path(__file__).parent.parent / "plugins" / "faulty" / "quantizers.py"
BY_NAME = {check.name: check for check in QUANTIZER_CHECKS}

FAILING = [
    ("no-student", "students", "quantize returned a NoneType; return a student of ctx.prepare(teacher)"),
    ("needs-activations", "students", "quantize raised IndexError"),
    ("not-finite", "students", "a fixed source under w4a4@gdfq gives values that are not finite; look at"),
    ("no-range", "levels", "its range saw no batch); let its ranges see a batch"),
    ("other-scheme", "levels", "a fixed source under w4a4@gdfq has the scheme w8a8@gdfq; use ctx.prepare(teacher)"),
    ("prunes-teacher", "teacher", "quantize changed the teacher's weights or buffers (0.weight); work on"),
    ("by-chance", "seeds", "same seed made different students; draw from ctx.generator"),
    ("leaves-no-grad", "rng", "quantize changed torch's grad mode of the caller; use"),
    ("opens-data", "confined", "images.npz; data-free methods get no data"),
    ("draws-after-restored", "resume", "checkpoint 1 of 4, quantize made another student; put everything"),
    ("draws-after-restored", "resume", "before you read it, for reading sets the random generators back"),
    (
        "steps-for-each",
        "many",
        "quantize_many made another student under w3a5@deploy than quantize; call the source",
    ),
]
ADVISED = [
    ("no-checkpoint", "resume", "an interrupted run starts afresh; call ctx.checkpoint"),
    ("untrained", "live", "its images are worth nothing; call dfqbench.quantizers.train_source(source, [ctx])"),
]


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    loaded = load_plugins([FAULTY])
    assert loaded.broken == []
    return loaded


@pytest.fixture(autouse=True)
def _grad_enabled() -> Iterator[None]:
    yield
    torch.set_grad_enabled(True)


def check(plugins: Plugins, quantizer: str, name: str) -> Finding:
    return conformance.run_check(BY_NAME[name], QuantizerUnderTest(plugins, quantizer))


@pytest.mark.parametrize(("quantizer", "name", "message"), [*FAILING, *ADVISED])
def test_broken_quantizer_fails_or_is_advised(plugins: Plugins, quantizer: str, name: str, message: str) -> None:
    finding = check(plugins, quantizer, name)
    assert finding.status == ("failed" if (quantizer, name, message) in FAILING else "warning")
    assert message in finding.message


def test_numbers_drawn_before_restored_is_read_are_drawn_again(plugins: Plugins) -> None:
    assert check(plugins, "draws-before-restored", "resume").status == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["calibrate", "distill", "squant", "dfq", "rex", "reconstruct"])
def test_built_in_quantizer_passes_everything(plugins: Plugins, name: str) -> None:
    findings = list(conformance.examine(plugins, name))
    assert [finding for finding in findings if finding.status != "ok"] == []
    assert [finding.check for finding in findings] == list(BY_NAME)


@pytest.mark.slow
def test_class_reports_in_pytest() -> None:
    class It(conformance.PluginChecks):
        quantizer = "leaves-no-grad"
        plugin_files = (FAULTY,)

    with pytest.raises(pytest.fail.Exception, match="settings stay as they were: quantize changed torch's grad mode"):
        It().test_conformance(BY_NAME["rng"])
