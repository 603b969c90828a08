from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cli.calls import PLUGINS, Call, Output, write_record
from tests.cli.fake_slurm import REFUSAL, FakeSlurm

from dfqbench.api.errors import UsageError
from dfqbench.cli.options import GridRequest
from dfqbench.cli.run import RunRequest
from dfqbench.cli.submit import arguments_of
from dfqbench.plugins import load_plugins
from dfqbench.run.cluster.slurm import parse_options, walltime
from dfqbench.run.schedule.run_environment import RunEnvironment
from dfqbench.run.store.record_parts import Seconds
from dfqbench.run.store.run_folder import RunFolder
from pretend import plan_of

GOLDEN = Path(__file__).with_name("peers.sh")
SMOKE = ("submit", "--grid", "smoke", "--on", "digits")
RUN = Path("results/runs/smoke")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    fake.command("sbatch", "12\n")
    fake.command("squeue")
    fake.command("scancel")
    return fake


def refused(output: Output, *parts: str) -> None:
    """Check that a request was refused, with what to do, and nothing was left."""
    assert (output.status, output.out) == (2, ""), output
    line = output.err.splitlines()[-1]
    assert line.startswith("dfqbench: error: ")
    for part in (*parts, "; "):
        assert part in line, line
    assert list(Path().rglob("slurm")) == []


def test_dry_run_prints_the_script_and_writes_nothing(call: Call, slurm: FakeSlurm, tmp_path: Path) -> None:
    setup = tmp_path / "set up.sh"
    setup.write_text("module load cuda\n")
    options = ("--slurm", "partition=gpu,gres=gpu:1,time=4:00:00", "--slurm", "comment=data free,exclusive")
    output = call(*SMOKE, "--bits", "w4a4,w3a3", "--peers", "3", *options, "--setup", setup, "--dry-run")
    assert output.status == 0, output
    shown = output.out.replace(sys.executable, "@PYTHON@").replace(str(tmp_path), "@TMP@")
    if os.environ.get("DFQBENCH_GOLDEN") == "write":
        GOLDEN.write_text(shown)
    assert shown == GOLDEN.read_text()
    assert "4 cells left on cuda, in 3 jobs" in output.err
    assert list(Path().iterdir()) == []
    assert slurm.calls("sbatch") == []
    subprocess.run(["bash", "-n"], input=output.out, text=True, check=True)


def test_submission_keeps_script_and_job(call: Call, slurm: FakeSlurm) -> None:
    output = call(*SMOKE, "--peers", "8", "--slurm", "time=1-0")
    assert output.out.startswith("submitted job 12; ")
    assert slurm.calls("sbatch") == ["--parsable"]
    assert slurm.script == (RUN / "slurm" / "12.sh").read_text()
    # There are two cells, and a job without a cell would only wait.
    assert "#SBATCH --array=0-1\n" in slurm.script
    data = json.loads((RUN / "slurm" / "submission.json").read_text())
    (job,) = data["jobs"]
    assert (job["id"], job["peers"], job["cells"], job["estimate"]) == ("12", 2, 2, "time not known yet")
    slurm.command("sbatch", "13;far\n")
    assert call(*SMOKE).status == 0
    slurm.command("squeue", "13_0|RUNNING|None\n")
    assert call("cancel", "smoke").out == "cancelled: 1 that worked, 0 that waited; what is finished is kept\n"
    assert slurm.calls("scancel") == ["12", "--clusters=far 13"]


def test_refusal_of_sbatch_is_shown_and_leaves_nothing(call: Call, slurm: FakeSlurm) -> None:
    slurm.command("sbatch", error=REFUSAL, status=1)
    output = call(*SMOKE, "--slurm", "partition=nix")
    refused(
        output, "sbatch refused: invalid partition specified: nix, Batch job submission failed", "nothing was submitted"
    )
    assert list(Path().iterdir()) == []


def test_missing_sbatch_says_where_to_go(call: Call, slurm: FakeSlurm) -> None:
    (slurm.folder / "sbatch").unlink()
    refused(call(*SMOKE), "sbatch is not on this machine", "use a login node", "--dry-run")
    assert call(*SMOKE, "--dry-run").status == 0


def test_job_is_cancelled_where_it_cannot_be_kept(
    call: Call, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dfqbench.run.cluster.submission.write_json", full)
    output = call(*SMOKE)
    assert output.status == 1
    assert "smoke cannot be used: No space left on device" in output.err
    assert slurm.calls("scancel") == ["12"]


def test_second_submission_with_another_grid_is_refused(call: Call, slurm: FakeSlurm) -> None:
    assert call(*SMOKE).status == 0
    assert call(*SMOKE).status == 0
    for change in (("--bits", "w3a3"), ("--seeds", "1"), ("--set", "zeroq.iterations=7")):
        output = call(*SMOKE, *change)
        assert output.status == 2
        assert "run 'smoke' was submitted with another grid; name another run with --name" in output.err
    assert call(*SMOKE, "--bits", "w3a3", "--name", "three").status == 0
    assert len(slurm.calls("sbatch")) == 3


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--methods", "zerq"), ("'zerq'", "zeroq")),
        (("--on", "imagenet"), ("imagenet",)),
        (("--models", "torchvision:resnet18"), ("cannot run", "--yes")),
        (("--fresh",), ("every job would run every cell",)),
        (("--time-limit", "soon"), ("is not a time",)),
        (("--executor", "rocket"), ("rocket",)),
        (("--setup", "nix.sh"), ("nix.sh is no file",)),
        (("--slurm", "array=0-3"), ("--peers sets it",)),
        (("--slurm", "signal=B:USR1@9"), ("dfqbench sets it",)),
        (("--slurm", "p=gpu"), ("'p=gpu' is not an option of sbatch", "long options")),
        (("--slurm", "time=soon"), ("time=soon is not a time",)),
        (("--slurm", "time=9"), ("too short", "10 min or more")),
    ],
)
def test_wrong_requests_are_refused(
    arguments: tuple[str, ...], parts: tuple[str, ...], call: Call, slurm: FakeSlurm
) -> None:
    refused(call(*SMOKE, *arguments), *parts)
    assert slurm.calls("sbatch") == []


def long_cell(hours: float) -> None:
    """Write a record of the cell `noise` that took so long."""
    (cell,) = plan_of("noise").cells
    record = RunEnvironment(RunFolder(Path("results/runs/before")), load_plugins(), "cpu").new_record(cell, 1)
    record.seconds = Seconds(wall=3600 * hours)
    record.fp_top1, record.top1, record.drop = 98.5, 90.0, 8.5
    record.close("ok")
    folder = write_record(Path("results/runs"), "before", cell.cell_id)
    (folder / "record.json").write_text(json.dumps(record.as_dict()))


@pytest.mark.parametrize(
    ("hours", "part"),
    [
        (5, "a walltime of 4.0 h is shorter than a cell, about 5.0 h; ask for more time="),
        (30, "about 30.0 h; add --yes"),
    ],
)
def test_long_runs_and_short_walltimes_need_yes(hours: float, part: str, call: Call, slurm: FakeSlurm) -> None:
    long_cell(hours)
    request = ("submit", "--grid", "smoke", "--methods", "noise", "--name", "long", "--slurm", "time=4:00:00")
    refused(call(*request), part)
    assert call(*request, "--yes").status == 0


def test_nothing_left_is_refused(call: Call, slurm: FakeSlurm) -> None:
    long_cell(1)
    output = call("submit", "--grid", "smoke", "--methods", "noise", "--name", "before")
    assert (output.status, output.out) == (2, "")
    assert "no cell of run 'before' is left to run; `dfqbench table before`" in output.err
    assert slurm.calls("sbatch") == []


def test_cancel_of_a_run_without_jobs(call: Call, slurm: FakeSlurm) -> None:
    write_record(Path("results/runs"), "mine", "a1")
    output = call("cancel", "mine")
    assert output.status == 2
    assert "no job of run 'mine' was submitted; stop it with Ctrl-C" in output.err
    assert call(*SMOKE).status == 0
    assert call("cancel", "smoke").out == "no job of run 'smoke' waits or runs\n"
    assert slurm.calls("scancel") == []


@pytest.mark.parametrize("passed", [True, False])
def test_probe_prints_the_log_of_one_job(passed: bool, call: Call, slurm: FakeSlurm) -> None:
    folder = RUN.absolute() / "slurm"
    log = "scontrol: missing\n" + "the probe has passed\n" * passed
    slurm.command("sbatch", "12\n")
    file = slurm.folder / "sbatch"
    file.write_text(file.read_text().replace("exit 0", f"echo '{log}' > {folder}/probe-12.log"))
    output = call(*SMOKE, "--slurm", "partition=gpu", "--probe")
    assert (output.status, output.out) == (0 if passed else 1, log + "\n")
    assert "--array" not in slurm.script
    assert "-m dfqbench doctor --images 0 && echo" in slurm.script
    assert list(Path().iterdir()) == []


def test_probe_of_a_folder_that_is_not_shared(call: Call, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    refused(call(*SMOKE, "--probe"), "the node left no log in", "that all nodes share with --out")
    assert list(Path().iterdir()) == []


def test_options_of_sbatch() -> None:
    options = parse_options(["partition=gpu,gres=gpu:1,shard:2,exclusive", "nodelist=node[1,3],time=2:00:00"])
    assert options == {
        "partition": "gpu",
        "gres": "gpu:1,shard:2",
        "exclusive": None,
        "nodelist": "node[1,3]",
        "time": "2:00:00",
    }
    for text in ("", "=x", "time=", "comment=a\nb", "Partition=x"):
        with pytest.raises(UsageError, match="is not an option of sbatch"):
            parse_options([text])


def test_walltimes_of_slurm() -> None:
    times = {"90": 5400, "1:30": 90, "4:00:00": 14400, "1-12": 129600, "1-0:30": 88200, "2-1:0:5": 176405}
    assert {text: walltime(text) for text in times} == times
    assert walltime("UNLIMITED") == float("inf")


def test_command_of_peers_has_every_option_that_was_given() -> None:
    plugin = PLUGINS / "flat.py"
    grid = GridRequest(grid="w4a4", settings=["a.b=1", "a.c=2"], plugin=[plugin], exact=True, limit=7)
    words = "--grid w4a4 --set a.b=1 --set a.c=2 --limit 7 --plugin FLAT --exact"
    assert arguments_of(grid) == [str(plugin) if word == "FLAT" else word for word in words.split()][2:]
    assert arguments_of(RunRequest(jobs=2, max_failures=3, yes=True)) == ["--yes", "--jobs", "2", "--max-failures", "3"]
