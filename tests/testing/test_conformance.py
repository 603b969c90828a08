"""Every check fails for a method made to break it, says what to change, and passes for a sound one."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
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
    ("eight-bits", "levels", "under w4a4@gdfq has the scheme w8a8@gdfq; use ctx.prepare(teacher)"),
    ("hides-batchnorm", "requires", "no BatchNorm with running statistics; set requires = Requires(batchnorm=True)"),
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
    loaded = load_plugins([NONCONFORMING])
    assert loaded.broken == []
    return loaded


@pytest.fixture(autouse=True)
def _grad_enabled() -> Iterator[None]:
    yield
    torch.set_grad_enabled(True)


def check(plugins: Plugins, method: str, name: str) -> Finding:
    return conformance.run_check(BY_NAME[name], MethodUnderTest(plugins, method))


@pytest.mark.parametrize(("method", "name", "message"), [*FAILING, *ADVISED])
def test_broken_method_fails_or_is_advised(plugins: Plugins, method: str, name: str, message: str) -> None:
    finding = check(plugins, method, name)
    assert finding.status == ("failed" if (method, name, message) in FAILING else "warning")
    assert message in finding.message
    assert "; " in finding.message, "what to change comes after a semicolon"


def test_every_check_has_a_method_that_fails_it() -> None:
    assert {name for _, name, _ in (*FAILING, *ADVISED)} | {"contract", "light"} == set(BY_NAME)


def test_sound_method_passes_everything(plugins: Plugins) -> None:
    findings = list(conformance.examine(plugins, "sound"))
    assert [finding for finding in findings if finding.status != "ok"] == []
    assert [finding.check for finding in findings] == list(BY_NAME)
    assert json.loads(json.dumps(dataclasses.asdict(findings[0])))["status"] == "ok"


def test_endless_code_is_stopped_and_not_run_here(plugins: Plugins) -> None:
    by_name = {finding.check: finding for finding in conformance.examine(plugins, "endless", limit=2)}
    assert "did not end within 2 s" in by_name["ends"].message
    assert "ctx.budget" in by_name["ends"].message
    assert by_name["light"].status == "ok"
    assert {by_name[check.name].status for check in CHECKS if check.runs_code} == {"not run"}


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("import torch\n", "light", "imports torch ({file}, line 3); import torch inside"),
        ("import random; random.seed(0)\n", "rng", "importing the plugin changes Python's random numbers; seed"),
    ],
)
def test_side_effects_of_an_import_are_reported(tmp_path: Path, code: str, name: str, message: str) -> None:
    file = tmp_path / "flat.py"
    _, rest = (PLUGINS / "flat.py").read_text().split("from __future__ import annotations\n")
    file.write_text(f"from __future__ import annotations\n\n{code}{rest}")
    finding = check(load_plugins([file]), "flat", name)
    assert finding.status == "failed"
    assert message.format(file=file) in finding.message


def test_method_that_breaks_the_contract_is_not_run() -> None:
    plugins = load_plugins([PLUGINS / "broken" / "plain_params.py"])
    first, *others = conformance.examine(plugins, "plain_params")
    assert (first.check, first.status) == ("contract", "failed")
    assert "is not a dataclass; write it as" in first.message
    assert {finding.status for finding in others if finding.check != "light"} == {"not run"}


def test_unknown_method_is_a_usage_error(plugins: Plugins) -> None:
    with pytest.raises(UsageError, match="unknown method, quantizer or range rule 'sond'; did you mean sound"):
        next(conformance.examine(plugins, "sond"))


def test_checks_restore_the_callers_state(plugins: Plugins) -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    check(plugins, "sound", "seeds")
    torch.set_rng_state(before)
    check(plugins, "sound", "state")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_class_reports_in_pytest(tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    members = f"method = 'constant-seed'\n    plugin_files = [{str(NONCONFORMING)!r}]"
    file.write_text(
        f"from dfqbench.testing import conformance\nclass TestIt(conformance.PluginChecks):\n    {members}\n"
    )
    options = ["-q", "-p", "no:cacheprovider", str(file), "-k", "contract or seeds or requires"]
    command = [sys.executable, "-m", "pytest", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=200)
    assert done.returncode == 1
    assert "2 passed" in done.stdout
    title = "same seed, same bits; another seed, other images"
    assert f"{title}: runs with different seeds made the same images" in done.stdout
    assert "Traceback" not in done.stdout


def test_class_warns_of_advice() -> None:
    class It(conformance.PluginChecks):
        method = "silent-params"
        plugin_files = (NONCONFORMING,)

    with pytest.warns(conformance.ConformanceWarning, match="steps does not say what it means"):
        It().test_conformance(BY_NAME["parameters"])
