"""Results folders that fill up, or cannot be read."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dfqbench.testing.faults.kills import look
from dfqbench.testing.faults.sweeps import Findings, Sweep, compare

Say = Callable[[str], None]
SIZES = (60, 300, 700)
"""KiB of the small disks: full before the first record, amid the first cell, and after some cells."""
NOBODY = 65534


def full_disks(work: Path, quiet: Sweep, findings: Findings, say: Say, sizes: tuple[int, ...] = SIZES) -> None:
    """Runs on disks that are too small (KiB), then on the same with room.

    A small tmpfs where this process may mount one; else a limit on the size of files, under which large ones fail.
    """
    for size in sizes:
        disk = work / f"disk-{size}"
        disk.mkdir()
        sweep = Sweep(disk / "out", quiet.grid)
        mounted = _mount(disk, f"{size}k")
        limits: dict[str, Any] = {} if mounted else {"preexec_fn": partial(_limit_files, size * 1024 // 8)}
        done = sweep.run(**limits)
        kind = "full disk (tmpfs)" if mounted else "full disk (file size limit)"
        findings.add(kind)
        _ended_well(done, kind)
        safe = set(sweep.finished())
        look(sweep, safe, findings)
        if mounted:
            _mount(disk, "200m", again=True)
        _repaired(sweep, safe, quiet, findings)
        if mounted:
            subprocess.run(["umount", str(disk)], check=False, capture_output=True)  # noqa: S603, S607
        say(f"{kind} of {size} KiB: complete again")


def unreadable_folder(work: Path, quiet: Sweep, findings: Findings, say: Say) -> None:
    """Takes the rights on the results away amid a sweep's life, and gives them back."""
    sweep = Sweep(work / "shut" / "out", quiet.grid)
    done = sweep.run("--bits", "w4a4")
    _must(done.returncode == 0, f"the first part failed:\n{done.stderr}")
    safe = set(sweep.finished())
    cells = sweep.folder.path / "cells"
    aside = cells.with_name("cells-aside")
    if os.geteuid() == 0:
        # Rights do not stop root; a file in the folder's place does.
        cells.rename(aside)
        cells.write_text("not a folder", encoding="utf-8")
    else:
        cells.chmod(0)
    done = sweep.run()
    findings.add("unreadable folder")
    _must(done.returncode == 1, f"an unreadable folder gave status {done.returncode}")
    _ended_well(done, "unreadable folder")
    if os.geteuid() == 0:
        cells.unlink()
        aside.rename(cells)
    else:
        cells.chmod(0o755)
    _repaired(sweep, safe, quiet, findings)
    say("unreadable folder: complete again")


def _repaired(sweep: Sweep, safe: set[str], quiet: Sweep, findings: Findings) -> None:
    done = sweep.run("--retry", "all")
    look(sweep, safe, findings)
    _must(done.returncode == 0, f"the run does not complete on re-run:\n{done.stderr}")
    compare(sweep, quiet, findings)


def _ended_well(done: subprocess.CompletedProcess[str], kind: str) -> None:
    _must(done.returncode in {0, 1}, f"{kind}: status {done.returncode}\n{done.stderr}")
    _must("Traceback" not in done.stderr, f"{kind}: a traceback reached the user\n{done.stderr}")


def _must(fine: bool, message: str) -> None:
    if not fine:
        raise RuntimeError(message)


def _mount(disk: Path, size: str, *, again: bool = False) -> bool:
    tool = shutil.which("mount")
    if tool is None or os.geteuid() != 0:
        return False
    options = f"remount,size={size}" if again else f"size={size}"
    command = [tool, "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for the harness."""
    return tempfile.TemporaryDirectory(prefix="dfqbench-faults-")
