"""The switch between Triton kernels and plain torch for the operators of this process; free of torch."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sysconfig
from pathlib import Path

SWITCH = "DFQBENCH_TRITON"
"""Environment variable; `0` disables the Triton kernels."""

_enabled = False


def triton_version() -> str | None:
    """Return the version of Triton, or None where its kernels cannot be used (see `why_no_triton`)."""
    return None if why_no_triton() else importlib.metadata.version("triton")


def why_no_triton() -> str:
    """Return why Triton cannot be used here, or an empty string."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0"
    try:
        importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "Triton is not installed"
    # Triton compiles launchers in C, with Python's headers.
    if not os.environ.get("CC") and shutil.which("gcc") is None and shutil.which("clang") is None:
        return "Triton finds no C compiler (install gcc or clang, or name one in CC)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Triton finds no headers of Python (Python.h)"
    return ""


def kernels_for(device: str) -> str:
    """Name what computes the operators on a device: `torch`, or Triton with its version."""
    version = triton_version() if device.startswith("cuda") else None
    return "torch" if version is None else f"triton {version}"


def enabled() -> bool:
    """Check whether Triton kernels are in use."""
    return _enabled


def set_enabled(enabled: bool) -> None:
    """Compute the operators by the registered kernels, or by their definitions."""
    global _enabled  # noqa: PLW0603 - of the whole process
    _enabled = enabled
