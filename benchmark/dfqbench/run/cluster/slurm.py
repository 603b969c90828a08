"""SLURM: options and scripts for `sbatch`, calls of its commands, and the walltime that is left.

Nothing needs `sacct`, which many clusters do not have.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqbench.api.errors import UsageError

WARNING = 120
"""Seconds before the end of the walltime at which SLURM sends USR1: peers keep their state and are queued again."""
LAST_BEGIN = 180.0
"""Seconds of walltime with which a peer begins no cell any more."""
PASSED = "the probe has passed"
"""Last line of the log of a probe that found nothing wrong."""
_OWN = {
    "array": "--peers sets it",
    **dict.fromkeys(("signal", "requeue", "no-requeue", "open-mode", "output", "error", "chdir"), "dfqbench sets it"),
    **dict.fromkeys(("parsable", "wait", "wrap", "test-only"), "dfqbench calls sbatch with a script"),
}
_NAME = re.compile(r"[a-z][a-z0-9-]+")
_TIMEOUT = 60.0
"""Seconds for an answer of SLURM's controller."""


class SlurmError(UsageError):
    """SLURM refuses a request, or its commands are not here."""


@dataclass(frozen=True, slots=True)
class JobState:
    """What `squeue` says about an element of a job."""

    state: str  # such as RUNNING
    reason: str  # why it waits


def parse_options(texts: Iterable[str]) -> dict[str, str | None]:
    """Return sbatch's long options of texts such as `partition=gpu,gres=gpu:1,exclusive`; None: without a value.

    A part that is no option belongs to the value before it: `nodelist=node[1,3]`, `gres=gpu:1,shard:2`.

    Raises:
        UsageError: a text is no list of options, or names one that dfqbench sets.
    """
    options: dict[str, str | None] = {}
    for text in texts:
        last = ""
        for part in text.split(","):
            name, equals, value = part.partition("=")
            last_value = options.get(last) or ""
            if last_value and (last_value.count("[") > last_value.count("]") or not _NAME.fullmatch(name)):
                options[last] = f"{last_value},{part}"
                continue
            if not _NAME.fullmatch(name) or not value.isprintable() or (equals and not value):
                hint = "write sbatch's long options, for example partition=gpu,gres=gpu:1,time=4:00:00"
                raise UsageError(f"--slurm: '{part}' is not an option of sbatch", hint)
            if name in _OWN:
                raise UsageError(f"--slurm: {name} cannot be given: {_OWN[name]}", "leave it out")
            options[name] = value if equals else None
            last = name
    return options


def walltime(text: str) -> float:
    """Return the seconds of a time as SLURM writes it, such as `90` (minutes), `4:00:00` or `1-12`; infinite: no limit.

    Raises:
        UsageError: it is none.
    """
    if text.upper() in {"UNLIMITED", "INFINITE", "-1"}:
        return float("inf")
    match = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+)(?::([0-9]+))?(?::([0-9]+))?", text)
    if match is None:
        raise UsageError(f"--slurm: time={text} is not a time", "write for example time=4:00:00 or time=1-12")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is None and len(numbers) < 3:
        # Minutes, or minutes and seconds.
        numbers.insert(0, 0)
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    return float(86400 * int(days or 0) + 3600 * hours + 60 * minutes + seconds)


def wants_gpu(options: Mapping[str, str | None]) -> bool:
    """Check whether options of sbatch ask for GPUs."""
    return any(name.startswith("gpus") for name in options) or "gpu" in (options.get("gres") or "")


def end_of_walltime(environment: Mapping[str, str] = os.environ) -> float:
    """Return the Unix time at which SLURM ends this process's job; infinite where there is none, or it is not known."""
    if "SLURM_JOB_END_TIME" in environment:
        return float(environment["SLURM_JOB_END_TIME"])
    if "SLURM_JOB_ID" not in environment or shutil.which("squeue") is None:
        return float("inf")
    try:
        done = _call("squeue", "--noheader", "--jobs", environment["SLURM_JOB_ID"], "--format=%L")
        return time.time() + walltime(done.stdout.strip())
    except UsageError:
        return float("inf")


def peers_script(
    run: Path, command: Sequence[str], options: Mapping[str, str | None], peers: int, *, setup: Path | None, again: str
) -> str:
    """Return the batch script of an array of peers.

    Args:
        run: the run's folder.
        command: `dfqbench run` of each peer.
        options: sbatch's long options.
        peers: number of array elements.
        setup: file that each element sources first, or None.
        again: command that goes on where an element cannot requeue itself.
    """
    own = {
        "job-name": f"dfqbench-{run.name}",
        "array": f"0-{peers - 1}",
        **options,
        "signal": f"B:USR1@{WARNING}",
        "requeue": None,
        "open-mode": "append",
        "output": f"{_literal(run)}/slurm/%A_%a.log",
    }
    lines = [
        "#!/bin/bash",
        f"# Peers of the run {run.name}: they share its cells. Written by:",
        f"#   {' '.join(again.splitlines())}",
        *_directives(own),
        *_begin(setup),
        f"{shlex.join(command)} &",
        "peer=$! cancelled=",
        "# USR1: the walltime ends. TERM: the job is cancelled, or others need its node. The peer keeps its state.",
        "trap 'kill -USR1 $peer' USR1",
        "trap 'cancelled=1; kill -TERM $peer' TERM",
        "while kill -0 $peer 2>/dev/null; do wait $peer; done  # a signal ends `wait`, not the peer",
        "wait $peer; status=$?",
        "# Status 3: cells are left. After TERM it is SLURM that decides.",
        'if [ $status -eq 3 ] && [ -z "$cancelled" ]; then',
        '  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" ||',
        '    echo "this job cannot queue itself again: give the command at the top of its script again" >&2',
        "fi",
        "exit $status",
    ]
    return "\n".join(lines) + "\n"


def probe_script(
    run: Path, command: Sequence[str], options: Mapping[str, str | None], token: Path, *, setup: Path | None
) -> str:
    """Return the batch script of one job that checks a node: `command` is a `dfqbench doctor`."""
    own = {"job-name": "dfqbench-probe", **options, "output": f"{_literal(run)}/slurm/probe-%j.log"}
    lines = [
        "#!/bin/bash",
        *_directives(own),
        *_begin(setup),
        'echo "node: $(hostname), CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"',
        f"if [ -r {shlex.quote(str(token))} ]; then",
        '  echo "results folder: shared with this node"',
        "else",
        '  echo "results folder: the folder of this name on this node is another one; name a shared one with --out"',
        "  exit 1",
        "fi",
        "if command -v scontrol >/dev/null; then",
        '  echo "scontrol: here; jobs queue themselves again at the end of their walltime"',
        "else",
        '  echo "scontrol: missing; at the end of the walltime give the same submit again: it goes on"',
        "fi",
        f"{shlex.join(command)} && echo {shlex.quote(PASSED)}",
    ]
    return "\n".join(lines) + "\n"


def submit(script: str) -> str:
    """Submit a script with `sbatch`.

    Returns:
        The job's id, with `;cluster` where there are several clusters.

    Raises:
        SlurmError: it is refused, or there is no `sbatch`.
    """
    return _call("sbatch", "--parsable", stdin=script).stdout.strip()


def wait_for(job: str) -> None:
    """Wait until a job is in the queue no more; Ctrl-C cancels it."""
    try:
        while queued([job]):
            time.sleep(1.0)
    except KeyboardInterrupt:
        cancel([job])
        raise


def queued(jobs: Iterable[str]) -> dict[str, JobState]:
    """Return the elements of jobs that wait or run, by id; those of `;cluster` are asked there.

    Raises:
        SlurmError: SLURM does not answer, or there is no `squeue`.
    """
    states: dict[str, JobState] = {}
    for where, ids in _by_cluster(jobs):
        arguments = (*where, "--noheader", "--array", "--format=%i|%T|%r", "--jobs", ",".join(ids))
        done = _call("squeue", *arguments, accept="Invalid job id")
        for line in done.stdout.splitlines():
            if line.count("|") >= 2:
                job, state, reason = line.split("|", 2)
                states[job.strip()] = JobState(state, reason)
    return states


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs with `scancel`; those that have ended are no error.

    Raises:
        SlurmError: it is refused, or there is no `scancel`.
    """
    for where, ids in _by_cluster(jobs):
        _call("scancel", *where, *ids, accept="Invalid job id")


def _by_cluster(jobs: Iterable[str]) -> list[tuple[list[str], list[str]]]:
    groups: dict[str, list[str]] = {}
    for job in jobs:
        number, _, cluster = job.partition(";")
        groups.setdefault(cluster, []).append(number)
    return [([f"--clusters={cluster}"] if cluster else [], ids) for cluster, ids in groups.items()]


def _call(program: str, *arguments: str, stdin: str = "", accept: str = "") -> subprocess.CompletedProcess[str]:
    """Call a command of SLURM; `accept`: part of an error message that is none."""
    if shutil.which(program) is None:
        raise SlurmError(
            f"{program} is not on this machine", "use a login node of the cluster (--dry-run needs no SLURM)"
        )
    try:
        done = subprocess.run(  # noqa: S603 - SLURM's own
            [program, *arguments], input=stdin, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SlurmError(
            f"{program} gave no answer within {_TIMEOUT:.0f} s", "look with `squeue --me` before you try again"
        ) from error
    if done.returncode != 0 and not (accept and accept in done.stderr):
        lines = [line.removeprefix(f"{program}: error: ").strip() for line in done.stderr.splitlines()]
        words = ", ".join(line for line in lines if line) or f"status {done.returncode}"
        raise SlurmError(f"{program} refused: {words}", "nothing was submitted" if program == "sbatch" else "try again")
    return done


def _directives(options: Mapping[str, str | None]) -> list[str]:
    return [
        f"#SBATCH --{name}" + ("" if value is None else f"={shlex.quote(value)}") for name, value in options.items()
    ]


def _begin(setup: Path | None) -> list[str]:
    return [f"cd {shlex.quote(str(Path.cwd()))} || exit 2", *([f". {shlex.quote(str(setup))}"] if setup else [])]


def _literal(path: Path) -> str:
    """Return a path for sbatch's `--output`, in which % begins a pattern."""
    return str(path).replace("%", "%%")
