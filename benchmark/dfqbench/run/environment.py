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

from dfqbench.api.precision import Precision
from dfqbench.run.identity import identity

PACKAGES = ("torch", "torchvision", "timm", "pytorchcv", "numpy", "pillow", "scikit-learn", "dfqbench")
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
    }


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return cpu_name()
    index = int(device.partition(":")[2] or 0)
    return gpu_names()[index] if index < len(gpu_names()) else "unknown GPU"


def environment_id(environment: dict[str, Any]) -> str:
    """Identity of an environment; our own version is left out, since identities of cells hold our code."""
    packages = {name: version for name, version in environment["packages"].items() if name != "dfqbench"}
    return identity(environment | {"packages": packages})


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
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        done = subprocess.run(  # noqa: S603 - found on the path
            [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())
