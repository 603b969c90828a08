"""Confine plugin code: it reads what computing needs, and no data; it writes to its own cell's folder.

The kernel refuses everything else, to other programs that the code starts and to native readers as well (Landlock, on
Linux). One thread is started before and stays free: there the host reads the data that it needs itself.
"""

from __future__ import annotations

import json
import os
import site
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlparse

from dfqbench.api.method import PROJECT
from dfqbench.hookspecs import ENTRY_POINTS
from dfqbench.models.spec import ModelSpec
from dfqbench.run.execute.job import Job
from dfqbench.run.worker.landlock import landlock_version, restrict, without

Result = TypeVar("Result")
LANDLOCK = "landlock"
AUDIT_HOOK = "audit hook"
"""Protection of a confined process, and of another one: what Python's audit hook sees is recorded."""
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/opt", "/nix/store", "/sys", "/proc")
"""Folders of programs, libraries and devices' descriptions. The kernel keeps processes out of the files of others."""
CACHES = ("~/.triton", "~/.nv")
"""Folders of compiled GPU kernels, which processes share."""


class Confinement:
    """The protection of the process in which plugin code runs.

    Attributes:
        protection: `landlock`, or `audit hook` with the reason.
    """

    def __init__(self) -> None:
        self.protection = AUDIT_HOOK
        self._free_thread: ThreadPoolExecutor | None = None

    def confine(self, job: Job) -> None:
        """Confine this thread and everything that it starts from now on."""
        if not landlock_version():
            self.protection = f"{AUDIT_HOOK}: this kernel has no Landlock"
            return
        self._free_thread = ThreadPoolExecutor(1, thread_name_prefix="host")
        self._free_thread.submit(os.getpid).result()  # it starts with its first task
        excluded = {Path(path).resolve() for path in (*job.guarded, job.run) if path}
        readable, split = without(_readable(job), excluded)
        try:
            restrict(readable, _writable(job), split)
        except OSError as error:
            self.protection = f"{AUDIT_HOOK}: Landlock: {error.strerror}"
        else:
            self.protection = LANDLOCK

    def outside(self, act: Callable[[], Result]) -> Result:
        """Run a function of the host that reads data."""
        return act() if self._free_thread is None else self._free_thread.submit(act).result()


def _readable(job: Job) -> Iterator[Path]:
    yield from map(Path, (*SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages()))
    yield from map(Path, filter(None, (*sys.path, *os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))))
    yield from map(Path, job.plugin_files)
    yield from _editable_projects()
    model = ModelSpec.from_dict(job.model)
    if model.weights is not None:
        yield model.weights
    code = model.ref.removeprefix("py:").rpartition(":")[0]
    if code.endswith(".py"):
        yield Path(code)


def _writable(job: Job) -> Iterator[Path]:
    yield from (Path("/dev"), Path(tempfile.gettempdir()))
    attempts = [Path(folder) for folder in (job.attempt, *(member.attempt for member in job.members))]
    # The folder of a cell holds its attempts, the images of its training and its checkpoints; a probe has only itself.
    yield from attempts if job.probe_seconds else (attempt.parent for attempt in attempts)
    made = [Path(job.source), *(Path(folder).expanduser() for folder in CACHES)]
    made += [Path(os.environ[name]) for name in ("TRITON_CACHE_DIR", "CUDA_CACHE_PATH") if name in os.environ]
    for folder in made:
        # A folder is allowed as it exists, not by its name.
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def _editable_projects() -> Iterator[Path]:
    """Yield the folders of plugins that are installed from their source folder."""
    for point in entry_points(group=ENTRY_POINTS):
        text = point.dist.read_text("direct_url.json") if point.dist and point.dist.name != PROJECT else None
        facts = json.loads(text) if text else {}
        if facts.get("dir_info", {}).get("editable"):
            yield Path(unquote(urlparse(facts["url"]).path))
