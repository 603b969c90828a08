"""Plugin code is kept from data: by the kernel where it can, and recorded in any case."""

# ruff: noqa: F811 - pytest hands fixtures over by name
from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.cli.calls import Call
from tests.cli.conftest import call  # noqa: F401 - a fixture
from tests.targets.conftest import write_npz  # noqa: F401 - a fixture

from attempts import attempt, cell_of, job_of, result_of
from cheat_kit import digits
from dfqbench.api.card import ModelCard
from dfqbench.api.errors import InputError
from dfqbench.models.spec import ModelSpec
from dfqbench.plugins import load_plugins
from dfqbench.run.store.real_images import RealImages, load_first, save_first
from dfqbench.run.store.record import Record
from dfqbench.run.store.run_folder import read_records
from dfqbench.run.worker.landlock import landlock_version, without
from dfqbench.run.worker.plugin_checks import DataGuard
from dfqbench.targets.spec import DatasetSpec

needs_landlock = pytest.mark.skipif(not landlock_version(), reason="this kernel has no Landlock")
CONFINED = """
import subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from dfqbench.run.worker.landlock import restrict
allowed, secret, own = map(Path, sys.argv[1:])
free = ThreadPoolExecutor(1)
free.submit(int).result()
restrict([Path("/usr"), Path("/lib"), Path("/lib64"), Path("/etc"), Path(sys.base_prefix), allowed], [own])
def tries(act):
    try:
        return act() or "done"
    except OSError as error:
        return type(error).__name__
print(tries(lambda: (allowed / "a").read_text()))
print(tries((secret / "b").read_text))
print(subprocess.run(["cat", str(secret / "b")], capture_output=True).returncode)
print(tries(lambda: (own / "c").write_text("c") and ""))
print(tries(lambda: (allowed / "a").write_text("x")))
print(tries((allowed / "a").unlink))
print(free.submit((secret / "b").read_text).result())
"""
READER = """
from pathlib import Path
import sklearn
import torch
from dfqbench.api import Batch, Fidelity, Method, Offer, Requires, hookimpl
from dfqbench.synth.source import FixedSource

DATA = (Path(sklearn.__file__).parent / "datasets" / "data" / "digits.csv.gz").read_bytes()


class Reader(Method):
    name = "reader"
    title = "Reads at import"
    paper = "none"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)

    def synthesize(self, teacher, ctx):
        return FixedSource(torch.randn((64, *ctx.card.input_size), generator=ctx.generator))


@hookimpl
def dfqbench_methods():
    return [Offer("reader", ":Reader")]
"""


@needs_landlock
def test_confined_process_uses_the_named_files_only(tmp_path: Path) -> None:
    allowed, secret, own = (tmp_path / name for name in ("allowed", "secret", "own"))
    for folder in (allowed, secret, own):
        folder.mkdir()
    (allowed / "a").write_text("A")
    (secret / "b").write_text("B")
    command = [sys.executable, "-c", CONFINED, *map(str, (allowed, secret, own))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    refused = "PermissionError"
    assert done.stdout.split() == ["A", refused, "1", "done", refused, refused, "B"]


def test_folders_are_split_around_what_is_excluded(tmp_path: Path) -> None:
    for name in ("a/x", "a/data/secret", "a/data/other", "b"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "data")
    folders = [tmp_path / name for name in ("a", "b", "link", "a/data/secret/deeper", "absent")]
    parts, split = without(folders, {tmp_path / "a" / "data" / "secret"})
    assert {*parts} == {tmp_path / name for name in ("a/x", "a/data/other", "b")}
    assert {*split} == {tmp_path / "a", tmp_path / "a" / "data"}


def test_processes_and_libraries_that_plugin_code_begins_are_recorded() -> None:
    guard = DataGuard([])
    with guard.watching():
        subprocess.run(["true"], check=True)
        os.system("true")  # noqa: S605
        ctypes.CDLL(None)
    assert [call.partition(" ")[0] for call in guard.foreign] == ["subprocess.Popen", "os.system", "ctypes.dlopen"]


def test_processes_of_the_host_and_of_libraries_for_it_are_not_recorded() -> None:
    guard = DataGuard([])
    starts = FunctionType(
        compile("start(['true'])", "", "exec"), {"__name__": "triton", "start": subprocess.check_call}
    )
    for name in ("dfqbench.accel.triton.kernels", "plugin"):
        with guard.watching():
            FunctionType(compile("starts()", "", "exec"), {"__name__": name, "starts": starts})()
        assert bool(guard.foreign) == (name == "plugin")


@pytest.mark.parametrize(("method", "opened"), [("noise", False), ("reader", True)])
def test_data_opened_at_import_counts_for_that_plugins_cells(method: str, opened: bool, tmp_path: Path) -> None:
    file = tmp_path / "reader.py"
    file.write_text(READER)
    plugins = load_plugins([file])
    job = job_of(cell_of(method, plugins, "w2a2"), tmp_path, "attempt", plugins, guarded=[str(digits())])
    assert bool(result_of(attempt(job).last)["real_data_opened"]) == opened


def test_images_made_with_real_data_do_not_serve_other_cells(tmp_path: Path) -> None:
    file = tmp_path / "reader.py"
    file.write_text(READER)
    plugins = load_plugins([file])
    for name, bits in (("first", "w4a4"), ("second", "w2a2")):
        job = job_of(cell_of("reader", plugins, bits), tmp_path, name, plugins, guarded=[str(digits())])
        result = result_of(attempt(job).last)
        assert result["real_data_opened"]
        assert result["reused"] is None


def _real(write_npz: Callable[..., Path]) -> tuple[RealImages, Path]:
    file = write_npz("train.npz", 20)
    card = ModelCard((3, 32, 32), (0.5,) * 3, (0.5,) * 3, 10)
    spec = DatasetSpec("x", "npz", file, file, 10)
    return RealImages(spec, ModelSpec("x", "m", "cifar:resnet20", card), [3, 1, 7]), file


def test_state_of_the_real_control_holds_no_pixels(write_npz: Callable[..., Path], tmp_path: Path) -> None:
    source, _ = _real(write_npz)
    drawn = source.sample(2)
    state = source.state_dict()
    tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
    assert [tensor.tolist() for tensor in tensors] == [[3, 1, 7]]
    again = RealImages.from_state(state)
    assert torch.equal(again.images, source.images)
    assert torch.equal(again.sample(3).images[1:], drawn.images)
    save_first(source, 2, tmp_path / "first")
    assert torch.equal(load_first(tmp_path / "first").images, source.images[:2])


def test_changed_training_images_are_refused(write_npz: Callable[..., Path]) -> None:
    source, file = _real(write_npz)
    with np.load(file) as stored:
        np.savez(file, x=255 - stored["x"], y=stored["y"])
    with pytest.raises(InputError, match="are not those that were chosen before"):
        RealImages.from_state(source.state_dict())


def _run(call: Call, folder: Path, *arguments: str) -> dict[str, Record]:
    done = call("run", "--grid", "smoke", "--methods", "real", "--bits", "w2a2", "--out", str(folder), *arguments)
    assert done.status == 0, done.err
    return {record.method: record for record in read_records(folder)[0]}


@pytest.mark.slow
def test_real_control_leaves_no_pixels_in_files(call: Call, tmp_path: Path) -> None:
    record = _run(call, tmp_path)["real"]
    assert record.protection == ("landlock" if landlock_version() else "audit hook: this kernel has no Landlock")
    files = {file: load_file(file) for file in tmp_path.rglob("*.safetensors") if file.name != "student.safetensors"}
    assert {file.name for file in files} == {"state.safetensors", "real-images.safetensors"}
    assert all(
        tensor.ndim == 1 and tensor.dtype == np.int64 for tensors in files.values() for tensor in tensors.values()
    )
    # Pictures and measures of the images read them from the data set.
    assert call("pictures", "--out", str(tmp_path), "--to", str(tmp_path / "pictures")).status == 0
    assert list((tmp_path / "pictures").iterdir())
    assert call("diagnose", "smoke", "--out", str(tmp_path)).status == 0
    assert next(iter(read_records(tmp_path)[0])).diagnostics.images == 64


@pytest.mark.slow
def test_unconfined_run_is_flagged_and_shown(call: Call, tmp_path: Path) -> None:
    record = _run(call, tmp_path, "--unconfined")["real"]
    assert (record.flags, record.protection) == (["unconfined"], "audit hook")
    assert "flagged: unconfined" in call("table", "--out", str(tmp_path)).out
