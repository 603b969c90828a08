"""Finds the compiled passes for a machine, and builds the library for its CPU once; needs no torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import platformdirs

SWITCH = "DFQBENCH_NATIVE"
"""Environment variable: `0` leaves the compiled passes out."""
GPU = "triton"
"""What stands in the place of the library's path where the kernels for GPUs are meant."""
SOURCES = Path(__file__).with_name("kernels")
"""Folder of the C++ files; what is compiled is its `library.cpp`."""
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fno-fast-math",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-shared",
    "-fPIC",
)
"""Nothing here lets the compiler change a result: no fast math, no contraction."""
LOADS = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
SECONDS = 120.0
"""Most time for a build; it takes a few seconds."""


@dataclass(frozen=True, slots=True)
class Built:
    """What became of the library.

    Attributes:
        path: the shared library, `GPU` for the kernels for GPUs, or None.
        compiler: first line of the compiler's version, where there is one.
        reason: why there is none, or empty.
    """

    path: Path | None
    compiler: str = ""
    reason: str = ""

    @property
    def described(self) -> str:
        """For the description of an environment: results differ in their last digits with and without."""
        return f"compiled by {self.compiler}" if self.path is not None else "torch"


def built() -> Built:
    """The library for this machine, built at the first call; later ones and other processes find it in the cache."""
    if os.environ.get(SWITCH) == "0":
        return Built(None, reason=f"{SWITCH}=0")
    return _built(os.environ.get("CXX") or "c++", cache_folder())


def built_for_gpus() -> Built:
    """The kernels for GPUs: Triton compiles each where it is first used, and keeps it in a cache of its own."""
    if os.environ.get(SWITCH) == "0":
        return Built(None, reason=f"{SWITCH}=0")
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return Built(None, reason="Triton is not installed")
    # Triton compiles what launches its kernels with a C compiler against Python's headers.
    if not os.environ.get("CC") and shutil.which("gcc") is None and shutil.which("clang") is None:
        return Built(None, reason="Triton finds no C compiler (install gcc or clang, or name one in CC)")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return Built(None, reason="Triton finds no headers of Python (Python.h)")
    return Built(Path(GPU), f"Triton {version}")


def cache_folder() -> Path:
    """Where built libraries are kept."""
    return Path(platformdirs.user_cache_dir("dfqbench", appauthor=False)) / "native"


@cache
def _built(name: str, folder: Path) -> Built:
    if platform.system() != "Linux":
        return Built(None, reason="built on Linux only")
    compiler, *options = shlex.split(name) or [""]
    if shutil.which(compiler) is None:
        return Built(None, reason=f"no C++ compiler '{compiler}' (install one, or name it in CXX)")
    command = [compiler, *options]
    try:
        version = _told([*command, "--version"]).partition("\n")[0]
        library = folder / f"{_key(version, command)}.so"
        if not _loads(library):
            _build(command, library)
            # Not in this process, which may have to load torch first.
            _told([sys.executable, "-c", LOADS, str(library)])
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Built(None, reason=_said(error))
    return Built(library, version)


def _loads(library: Path) -> bool:
    """Whether a library is there and whole, and this machine can load it: a home may be shared by several."""
    try:
        return library.is_file() and _told([sys.executable, "-c", LOADS, str(library)]) == ""
    except subprocess.SubprocessError:
        return False


def _build(command: list[str], library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its place and moved there whole: two builds at once do not meet.
    with tempfile.TemporaryDirectory(dir=library.parent) as work:
        made = Path(work) / library.name
        _told([*command, *FLAGS, str(SOURCES / "library.cpp"), "-o", str(made)])
        made.replace(library)


def _key(version: str, command: list[str]) -> str:
    """Changes with the source, the compiler and the processor: -march=native runs on its own kind only."""
    sources = [file.read_bytes() for file in sorted(SOURCES.iterdir())]
    facts = (*sources, shlex.join([*command, *FLAGS]).encode(), version.encode(), _processor())
    return hashlib.sha256(b"\0".join(facts)).hexdigest()[:24]


def _processor() -> bytes:
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.machine().encode()
    wanted = (b"model name", b"flags", b"Features", b"CPU part")
    return b"\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _told(command: list[str]) -> str:
    return subprocess.run(  # noqa: S603 - a compiler of the user's own path
        command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=True
    ).stdout


def _said(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        told = (error.stderr or error.stdout or "").strip().splitlines()
        if LOADS in error.cmd:
            return f"what was compiled cannot be loaded: {told[-1] if told else error}"
        return f"the compiler failed: {told[0] if told else error}"
    return str(error)
