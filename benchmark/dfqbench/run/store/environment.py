"""The environment of a run: what may change the last digits, found without importing torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from dfqbench.accel.backend import kernels_for
from dfqbench.api.precision import Precision
from dfqbench.run.plan.identity import identity

PACKAGES = ("torch", "torchvision", "timm", "pytorchcv", "numpy", "pillow", "scikit-learn", "dfqbench")
"""Packages whose versions may change a number."""
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "DFQBENCH_GRAPHS",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
"""Environment variables by which libraries choose their kernels, and steps are recorded or not."""
NOT_IDENTITY = ("installed", "revision", "torch", "deterministic")
"""Parts of the description that tell more, but change no number by themselves or follow from the others."""
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Instruction sets that multiply in bfloat16 (the last: 64-bit Arm)."""


def describe_environment(device: str) -> dict[str, Any]:
    """Versions and hardware, as plain data.

    Args:
        device: torch device of the run.
    """
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "device": device,
        "device_name": _device_name(device),
        "kernels": kernels_for(device),
        "driver": driver_version() if device.startswith("cuda") else None,
        "variables": {name: value for name in VARIABLES if (value := os.environ.get(name)) is not None},
        "deterministic": _deterministic(device),
        "revision": code_revision(),
        "installed": _installed(),
    }


def _deterministic(device: str) -> str:
    """Whether the same seed gives the same bits."""
    if device.startswith("cuda"):
        return "no: CUDA kernels may add in any order"
    return "yes, for the same number of threads"


def _installed() -> dict[str, str]:
    """Every installed distribution and its version."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found[name.lower()] = distribution.version
    return dict(sorted(found.items()))


@cache
def code_revision() -> str | None:
    """The git revision that this package runs from, `+` where files differ from it; None outside a checkout."""
    git = shutil.which("git")
    folder = Path(__file__).parent
    if git is None:
        return None
    try:
        told = [
            subprocess.run(  # noqa: S603 - found on the path
                [git, "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for arguments in (
                ("ls-files", "--error-unmatch", str(Path(__file__))),
                ("rev-parse", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no", str(folder)),
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return told[1] + ("+" if told[2] else "")


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return cpu_name()
    index = int(device.partition(":")[2] or 0)
    return gpu_names()[index] if index < len(gpu_names()) else "unknown GPU"


def environment_id(environment: dict[str, Any]) -> str:
    """Identity of an environment; our own version is left out, since identities of cells hold our code."""
    packages = {name: version for name, version in environment["packages"].items() if name != "dfqbench"}
    facts = {key: value for key, value in environment.items() if key not in NOT_IDENTITY}
    return identity(facts | {"packages": packages})


def resolve_device(wanted: str) -> str:
    """Turns `auto` into `cuda` where a GPU and a CUDA build of torch are here, else `cpu`."""
    if wanted != "auto":
        return wanted
    return "cuda" if gpu_names() and "+cpu" not in (_version("torch") or "") else "cpu"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def resolve_precision(wanted: str, device: str) -> Precision:
    """Turns `auto` into the fastest precision that the device has instructions for.

    Args:
        wanted: a precision's name, or `auto`.
        device: torch device.
    """
    if wanted != "auto":
        return Precision(wanted)
    able = device.startswith("cuda") or BFLOAT16_FLAGS & cpu_flags()
    return Precision.MIXED_BFLOAT16 if able else Precision.FLOAT32_FAST


@cache
def cpu_flags() -> frozenset[str]:
    """The processor's instruction sets as Linux tells them; empty elsewhere."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


@cache
def cpu_name() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def gpu_names() -> tuple[str, ...]:
    """Names of NVIDIA GPUs as their driver tells them; empty without one."""
    return _asked_driver("name")


def free_gpu_mib() -> tuple[float, ...]:
    """Memory in MiB that is free now on each NVIDIA GPU of the machine; empty without one."""
    return tuple(float(told.split()[0]) for told in _asked_driver("memory.free") if told.split()[0].isdigit())


@cache
def driver_version() -> str | None:
    """Version of NVIDIA's driver, or None."""
    return next(iter(_asked_driver("driver_version")), None)


def _asked_driver(field: str) -> tuple[str, ...]:
    """One line a GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        done = subprocess.run(  # noqa: S603 - found on the path
            [tool, f"--query-gpu={field}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())
