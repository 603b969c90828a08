"""A real SLURM of two nodes on this machine, and `dfqbench submit` on it.

`DFQBENCH_CLUSTER=install` installs its packages where they are missing (root and apt), `all` also runs the long tests;
`tox -e cluster` does both.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from dfqbench.run.cluster.slurm import peers_script, queued
from dfqbench.run.cluster.submission import submit_peers

SCRIPT = Path(__file__).with_name("slurm_cluster.sh")
ASKED = os.environ.get("DFQBENCH_CLUSTER", "")
PATIENCE = 1200.0
"""Seconds that a run of the smallest cells may take on a busy machine."""
CELLS = ("--grid", "smoke", "--jobs", "1")
LONG = ("--methods", "zeroq+distill", "--budget", "tiny", "--set", "zeroq.iterations=20", "--set", "distill.epochs=40")
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(4 * PATIENCE)]
only_all = pytest.mark.skipif(ASKED != "all", reason="takes minutes: `tox -e cluster`")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """Start a SLURM; return the variables of its commands."""
    if not all(map(shutil.which, ("sbatch", "slurmctld", "slurmd", "munged"))):
        if not ASKED:
            pytest.skip("SLURM is not installed; DFQBENCH_CLUSTER=install lets apt install it")
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            pytest.skip("SLURM is not installed, and installing it needs root and apt")
        # Without a network apt may wait for very long.
        command = ["timeout", "120", str(SCRIPT), "install"]
        installed = subprocess.run(command, capture_output=True, text=True, check=False)
        if installed.returncode != 0:
            pytest.skip(f"SLURM cannot be installed: {installed.stderr.strip()[-200:]}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Sockets' names are short, and pytest's folders long.
    root = Path(f"/tmp/dfqbench-slurm-{os.getpid()}")  # noqa: S108
    settings = os.environ | {"SLURM_ROOT": str(root), "SLURM_PORT": str(min(port, 60000)), "SLURM_CPUS": "2"}
    started = subprocess.run([SCRIPT, "start"], capture_output=True, text=True, env=settings, check=False)
    try:
        if started.returncode != 0:
            pytest.skip(f"SLURM does not start here: {started.stderr.strip()[-300:]}")
        yield {"SLURM_CONF": str(root / "slurm.conf")}
    finally:
        subprocess.run([SCRIPT, "clean"], capture_output=True, env=settings, check=False)


@pytest.fixture
def dfqbench(slurm: Mapping[str, str], tmp_path: Path) -> Callable[..., str]:
    """Return a function that calls `dfqbench` in an empty folder, and returns what it prints."""
    # pytest's own variables are not the peers'.
    environment = {key: value for key, value in os.environ.items() if key != "DFQBENCH_DATA"} | dict(slurm)

    def call(*arguments: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "dfqbench", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=PATIENCE, check=False
        )
        assert done.returncode == status, (arguments, done.returncode, done.stdout, done.stderr, logs(tmp_path))
        return done.stdout

    return call


def logs(folder: Path) -> str:
    return "\n".join(file.read_text()[-3000:] for file in folder.glob("results/runs/*/slurm/*.log"))


def until(what: Callable[[], Any], folder: Path) -> Any:
    end = time.monotonic() + PATIENCE
    while not (result := what()):
        assert time.monotonic() < end, logs(folder)
        time.sleep(0.2)
    return result


def records(run: Path) -> list[dict[str, Any]]:
    files = sorted(run.glob("cells/*/attempt-*/record.json"), key=lambda file: file.stat().st_mtime)
    return [json.loads(file.read_text()) for file in files]


def digits(run: Path) -> dict[str, Any]:
    """Accuracies, answers and the students' tensors by cell."""
    result = {}
    for file in run.glob("cells/*/attempt-*/record.json"):
        record = json.loads(file.read_text())
        if record["status"] == "ok":
            tensors = load_file(file.with_name("student.safetensors"))
            students = {name: tensor.tobytes() for name, tensor in tensors.items()}
            result[record["cell_id"]] = (record["top1"], record["fp_top1"], record["correct"], students)
    return result


def job_of(output: str) -> str:
    return output.partition("submitted job ")[2].partition(";")[0]


def command(slurm: Mapping[str, str], *words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | dict(slurm), check=True).stdout


def steps(run: Path) -> int:
    """Steps of the work that a peer reports, or 0."""
    lines = [json.loads(line) for file in run.glob("peers/*_*.jsonl") for line in file.read_text().splitlines() if line]
    return max((work["step"] for line in lines for work in line["cells"] if work["phase"] != "evaluation"), default=0)


def test_two_peers_share_the_cells(dfqbench: Callable[..., str], slurm: Mapping[str, str], tmp_path: Path) -> None:
    two, one = tmp_path / "results" / "runs" / "two", tmp_path / "results" / "runs" / "one"
    grid = (*CELLS, "--bits", "w4a4,w3a3", "--separate")
    job = job_of(dfqbench("submit", *grid, "--name", "two", "--peers", "2", "--slurm", "time=2:00:00,cpus-per-task=2"))
    assert dfqbench("watch", "two").splitlines()[-2:] == ["run two: 4 of 4 cells done (4 ok)", "complete"]
    assert [record["attempt"] for record in records(two)] == [1] * 4
    assert {file.name for file in (two / "peers").iterdir()} == {f"{job}_0.jsonl", f"{job}_1.jsonl"}
    hosts = {
        line.split()[-1] for line in command(slurm, "scontrol", "show", "job", job).splitlines() if "BatchHost" in line
    }
    assert hosts == {"BatchHost=node1", "BatchHost=node2"}
    dfqbench("run", *grid, "--name", "one")
    assert digits(two) == digits(one)
    assert len(digits(one)) == 4


PEER = """\
trap 'echo stopped by USR1; exit 3' USR1
trap 'echo stopped by TERM; exit 3' TERM
echo "start ${SLURM_RESTART_COUNT:-0}"
if [ "${SLURM_RESTART_COUNT:-0}" -eq 1 ]; then exit 5; fi
for second in $(seq 600); do sleep 0.1; done
"""


@pytest.mark.parametrize(
    ("signal", "lines"),
    [
        (("--batch", "--signal=USR1"), ["start 0", "stopped by USR1", "start 1"]),
        ((), ["start 0", "stopped by TERM"]),
    ],
)
def test_script_queues_its_job_again_after_usr1_only(
    signal: tuple[str, ...],
    lines: list[str],
    slurm: Mapping[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    peer = tmp_path / "peer.sh"
    peer.write_text(PEER)
    script = peers_script(tmp_path, ["bash", str(peer)], {"time": "20"}, 1, setup=None, again="the command")
    job = submit_peers(tmp_path, script, {})
    log = tmp_path / "slurm" / f"{job}_0.log"
    until(lambda: log.is_file() and "start 0" in log.read_text(), tmp_path)
    command(slurm, "scancel", *signal, f"{job}_0")
    until(lambda: not queued([job]), tmp_path)
    shown = command(slurm, "scontrol", "show", "job", f"{job}_0")
    # The peer's status is its job's.
    assert ("JobState=FAILED" in shown and "ExitCode=5:0" in shown) if signal else "JobState=CANCELLED" in shown
    assert [line for line in log.read_text().splitlines() if line.startswith(("start", "stopped"))] == lines


@only_all
def test_probe_checks_a_node(dfqbench: Callable[..., str]) -> None:
    output = dfqbench("submit", *CELLS, "--probe", "--slurm", "gres=gpu:1")
    for line in ("CUDA_VISIBLE_DEVICES=0", "results folder: shared with this node", "scontrol: here"):
        assert line in output
    assert output.endswith("the probe has passed\n")


@only_all
def test_gpu_of_the_job_reaches_the_script(
    dfqbench: Callable[..., str], slurm: Mapping[str, str], tmp_path: Path
) -> None:
    setup = tmp_path / "setup.sh"
    setup.write_text('echo "devices: $CUDA_VISIBLE_DEVICES"\n')
    options = ("--slurm", "gres=gpu:1,time=60", "--device", "cpu", "--setup", str(setup))
    dfqbench("submit", *CELLS, "--methods", "noise", *options)
    dfqbench("watch", "smoke")
    assert "devices: 0\n" in logs(tmp_path)


def test_refusal_of_sbatch_is_shown(dfqbench: Callable[..., str], tmp_path: Path) -> None:
    for option in ("partition=nix", "no-such-option=1"):
        dfqbench("submit", *CELLS, "--slurm", option, status=2)
    assert list(tmp_path.iterdir()) == []


@only_all
def test_signal_before_the_end_of_the_walltime_requeues(
    dfqbench: Callable[..., str], slurm: Mapping[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "results" / "runs" / "smoke"
    job = job_of(dfqbench("submit", *CELLS, *LONG, "--slurm", "time=2:00:00", "--checkpoint-every", "1s"))
    until(lambda: steps(run) > 2, tmp_path)
    # What SLURM does 120 s before the end.
    command(slurm, "scancel", "--batch", "--signal=USR1", f"{job}_0")
    until(lambda: any(record["status"] == "preempted" for record in records(run)), tmp_path)
    assert dfqbench("watch", "smoke").splitlines()[-1] == "complete"
    assert "Restarts=1" in command(slurm, "scontrol", "show", "job", f"{job}_0")
    assert [record["status"] for record in records(run)] == ["preempted", "ok"]
    assert records(run)[-1]["resumed"] >= 1
    dfqbench("run", *CELLS, *LONG, "--name", "whole")
    assert digits(run) == digits(run.with_name("whole"))


@only_all
def test_cancelled_run_goes_on_with_the_same_command(
    dfqbench: Callable[..., str], slurm: Mapping[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "results" / "runs" / "smoke"
    submit = ("submit", *CELLS, *LONG, "--slurm", "time=2:00:00", "--checkpoint-every", "1s")
    job = job_of(dfqbench(*submit))
    until(lambda: steps(run) > 2, tmp_path)
    assert dfqbench("cancel", "smoke").startswith("cancelled: 1 that worked, 0 that waited")
    until(lambda: not command(slurm, "squeue", "--noheader"), tmp_path)
    assert "JobState=CANCELLED" in command(slurm, "scontrol", "show", "job", f"{job}_0")
    assert [record["status"] for record in records(run)] == ["preempted"]
    assert "no peer is alive" in dfqbench("watch", "smoke", status=1)
    assert job_of(dfqbench(*submit)) != job
    assert dfqbench("watch", "smoke").splitlines()[-1] == "complete"
    assert [record["status"] for record in records(run)] == ["preempted", "ok"]
    assert records(run)[-1]["resumed"] >= 1
