"""Every check fails for a method made to break it, says what to change, and passes for a sound one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dfqbench.api import UsageError
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.testing import conformance
from dfqbench.testing.conformance import CHECKS, Finding, MethodUnderTest

PLUGINS = Path(__file__).parent.parent / "plugins"
NONCONFORMING = PLUGINS / "faulty" / "nonconforming.py"
BY_NAME = {check.name: check for check in CHECKS}

FAILING = [
    ("lossy-params", "parameters", "sizes does not survive JSON; give it a type that does"),
    ("leaves", "ends", "status 7; raise an exception"),
    ("writes", "confined", "nonconforming-"),
    ("reads", "confined", "images.npz; data-free methods get no data"),
    ("connects", "confined", "127.0.0.1"),
    ("wrong-shape", "images", "not (6, 1, 16, 16); take (C, H, W) from ctx.card.input_size"),
    ("wrong-dtype", "images", "torch.float64, not torch.float32; convert"),
    ("not-finite", "images", "are not finite; look for"),
    ("wrong-labels", "images", "reach beyond the 4 classes; draw them below ctx.card.classes"),
    ("no-source", "images", "returned a Tensor without `sample`; return a dfqbench.synth.FixedSource"),
    ("graph", "images", "carry a graph, which keeps every step's memory; hand out .detach()ed"),
    ("mutates-teacher", "teacher", "synthesize changed the teacher's weights or buffers (0.weight); work on"),
    ("trains-teacher", "teacher", "train/eval mode (0); leave the mode alone"),
    ("leaves-hook", "teacher", "hooks (the network itself); remove every hook"),
    ("unseeded", "seeds", "same seed made different images; draw from ctx.generator"),
    ("constant-seed", "seeds", "different seeds made the same images; draw from ctx.generator"),
    ("changes-settings", "rng", "changed torch's grad mode of the caller; use ctx.generator"),
    ("forgetful", "resume", "resumed from checkpoint 1 of 4, synthesize made other images; put everything"),
    ("unloadable-state", "state", "does not load with weights_only=True: it holds pathlib"),
    ("partial-state", "state", "hands out other images; put networks, optimizer, counters"),
    ("fails-to-quantize", "quantizers", "quantize raised ValueError: only eight bits (" + str(NONCONFORMING)),
    ("no-ranges", "levels", "its range saw no batch"),
    (
        "hides-batchnorm",
        "requires",
        "has no BatchNorm with running statistics; set requires = Requires(batchnorm=True)",
    ),
    ("asks-in-secret", "requires", "set depends_on_bits = True"),
    ("looks-in-secret", "requires", "leave needs_student out"),
]
ADVISED = [
    ("silent-params", "parameters", "steps does not say what it means"),
    ("no-checkpoint", "resume", "call ctx.checkpoint"),
    ("own-module", "levels", "cannot be checked"),
    ("needs-nothing", "requires", "set requires = Requires(batchnorm=False)"),
    ("needs-no-bits", "requires", "with False one source serves all"),
    ("black", "noise", "look at the images"),
]


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    found = load_plugins([NONCONFORMING])
    assert found.broken == []
    return found


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    yield
    torch.set_grad_enabled(True)


def found(plugins: Plugins, method: str, check: str) -> Finding:
    return conformance.run_check(BY_NAME[check], MethodUnderTest(plugins, method))


@pytest.mark.parametrize(("method", "check", "message"), FAILING)
def test_a_broken_method_fails(plugins: Plugins, method: str, check: str, message: str) -> None:
    finding = found(plugins, method, check)
    assert finding.status == "failed"
    assert message in finding.message
    # What to change comes after a semicolon, in every message.
    assert "; " in finding.message


@pytest.mark.parametrize(("method", "check", "message"), ADVISED)
def test_advice_is_a_warning(plugins: Plugins, method: str, check: str, message: str) -> None:
    finding = found(plugins, method, check)
    assert finding.status == "warning"
    assert message in finding.message


def test_every_check_has_a_method_that_it_finds() -> None:
    tried = {check for _, check, _ in (*FAILING, *ADVISED)} | {"contract", "light"}
    assert tried == set(BY_NAME)


def test_a_sound_method_passes_everything(plugins: Plugins) -> None:
    findings = list(conformance.examine(plugins, "sound"))
    assert [finding for finding in findings if finding.status != "ok"] == []
    assert [finding.check for finding in findings] == list(BY_NAME)


def test_endless_code_is_stopped_and_not_run_here(plugins: Plugins) -> None:
    by_name = {finding.check: finding for finding in conformance.examine(plugins, "endless", limit=2)}
    assert "did not end within 2 s" in by_name["ends"].message
    assert "ctx.budget" in by_name["ends"].message
    assert by_name["light"].status == "ok"
    assert {by_name[check.name].status for check in CHECKS if check.runs_code} == {"not run"}


def test_heavy_imports_are_named_with_their_line() -> None:
    finding = found(load_plugins([PLUGINS / "faulty" / "heavy.py"]), "heavy", "light")
    assert finding.status == "failed"
    assert f"imports torch ({PLUGINS / 'faulty' / 'heavy.py'}, line 5); import torch inside" in finding.message


def test_seeding_on_import_is_seen() -> None:
    finding = found(load_plugins([PLUGINS / "faulty" / "seeds_on_import.py"]), "seeds-on-import", "rng")
    assert "importing the plugin changes Python's random numbers; seed nothing" in finding.message


@pytest.mark.parametrize(
    ("file", "method", "message"),
    [
        ("plain_params", "plain_params", "is not a dataclass; write it as"),
        ("unresolved_load", "unresolved", "fix the `load` string"),
    ],
)
def test_contract(file: str, method: str, message: str) -> None:
    plugins = load_plugins([PLUGINS / "broken" / f"{file}.py"])
    first, *others = conformance.examine(plugins, method)
    assert (first.check, first.status) == ("contract", "failed")
    assert message in first.message
    assert {finding.status for finding in others if finding.check != "light"} == {"not run"}


def test_an_unknown_method_is_a_usage_error(plugins: Plugins) -> None:
    with pytest.raises(UsageError, match="did you mean sound"):
        next(conformance.examine(plugins, "sond"))


def test_nothing_is_changed_for_the_caller(plugins: Plugins) -> None:
    before = torch.get_rng_state(), torch.get_num_threads()
    found(plugins, "sound", "seeds")
    torch.set_rng_state(before[0])
    found(plugins, "sound", "state")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


PYTEST_FILE = """
from dfqbench.testing import conformance

class TestIt(conformance.MethodChecks):
    method = {method!r}
    plugin_files = [{file!r}]
"""


def test_the_class_reports_in_pytest(tmp_path: Path) -> None:
    import subprocess
    import sys

    file = tmp_path / "test_it.py"
    file.write_text(PYTEST_FILE.format(method="constant-seed", file=str(NONCONFORMING)))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(file),
        "-k",
        "contract or seeds or requires",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=200)
    assert done.returncode == 1
    assert "2 passed" in done.stdout
    assert (
        "same seed, same bits; another seed, other images: runs with different seeds made the same images"
        in done.stdout
    )
    assert "Traceback" not in done.stdout


def test_the_class_warns_of_advice(plugins: Plugins) -> None:
    class It(conformance.MethodChecks):
        method = "silent-params"
        plugin_files = (NONCONFORMING,)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        It().test_conformance(BY_NAME["parameters"])
    assert [w.category for w in caught] == [conformance.ConformanceWarning]


def test_the_findings_are_plain_data(plugins: Plugins) -> None:
    import dataclasses

    assert json.loads(json.dumps(dataclasses.asdict(found(plugins, "sound", "contract"))))["status"] == "ok"
