"""Results folders that fill up, or cannot be read."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from toy_run import Report, ToyRun

SIZES = (60, 300, 700)
"""KiB of the small disks: full before the first record, during the first cell, and after some cells."""
log = logging.getLogger(__name__)


def full_disk(size: int, work: Path, reference: ToyRun) -> Report:
    """Run on a tmpfs of `size` KiB, else under a limit on the size of files, then again with enough room."""
    report, disk = Report(), work / f"disk-{size}"
    disk.mkdir()
    run = ToyRun(disk / "out", reference.grid)
    mounted = _mount(disk, f"size={size}k")
    fault = "full disk (tmpfs)" if mounted else "full disk (file size limit)"
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size * 128,) * 2)
    options: dict[str, Any] = {} if mounted else {"preexec_fn": limit}
    run.run(statuses=(0, 1), **options)
    report.injected[fault] += 1
    finished = run.finished()
    report.inspect(run, finished)
    if mounted:
        _mount(disk, "remount,size=200m")
    _repair(run, finished, reference, report)
    if mounted:
        subprocess.run(["umount", str(disk)], check=False, capture_output=True)
    log.info("%s of %d KiB: complete again", fault, size)
    return report


def unreadable_folder(work: Path, reference: ToyRun) -> Report:
    report, run = Report(), ToyRun(work / "unreadable" / "out", reference.grid)
    run.run("--bits", "w4a4")
    finished = run.finished()
    cells = run.folder.path / "cells"
    hidden = cells.rename(cells.with_name("cells-hidden"))
    # Permissions do not stop root; a file in the folder's place does.
    cells.write_text("not a folder", encoding="utf-8")
    run.run(statuses=(1,))
    report.injected["unreadable folder"] += 1
    cells.unlink()
    hidden.rename(cells)
    _repair(run, finished, reference, report)
    log.info("unreadable folder: complete again")
    return report


def _repair(run: ToyRun, finished: set[str], reference: ToyRun, report: Report) -> None:
    run.run("--retry", "all")
    report.inspect(run, finished)
    report.compare(run, reference)


def _mount(disk: Path, options: str) -> bool:
    tool = shutil.which("mount")
    command = [tool or "", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    able = tool is not None and os.geteuid() == 0
    return able and subprocess.run(command, check=False, capture_output=True).returncode == 0
