"""The environment of a run: what may change the last digits, and the machine's free resources, without torch."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dfqbench.accel.backend import kernels_for
from dfqbench.api.precision import Precision
from dfqbench.run.plan.identity import identity
from dfqbench.run.store.files import write_json
from dfqbench.run.store.resources import free_memory_mib, usable_cores

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
"""Environment variables by which libraries choose their kernels, and CUDA graphs are used or not."""
HARDWARE = ("cpu", "cores", "driver", "device_name")
"""Parts of the description that nodes of one cluster may differ in; of them only a GPU's name changes digits."""
NOT_IDENTITY = frozenset({"installed", "revision", "torch", "deterministic", *HARDWARE})
"""Parts of the description that change no number by themselves or follow from the others."""
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Instruction sets that multiply in bfloat16 (the last: 64-bit Arm)."""
INSTRUCTIONS = BFLOAT16_FLAGS | {
    *("sse4_2", "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_fp16", "asimd", "asimdhp", "asimddp", "sve", "sve2", "i8mm"),
}
"""Instruction sets by which torch and its libraries choose their CPU kernels."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Machine:
    """Resources of a machine."""

    cores: int  # CPU cores that this process may use
    memory_mib: float  # free memory
    gpus: tuple[tuple[str, str], ...]  # name for CUDA_VISIBLE_DEVICES and product name of each visible GPU
    gpu_mib: tuple[float, ...] = ()  # free memory of each of them

    @classmethod
    def here(cls) -> Machine:
        """Return what is free on this machine now."""
        gpus = visible_gpus()
        free = [float(line.split()[0]) for line in _ask_driver("memory.free") if line.split()[0].isdigit()]
        least = min(free, default=0.0)
        cards = (_card(name) for name, _ in gpus)
        of_each = (least if card is None or card >= len(free) else free[card] for card in cards)
        return cls(usable_cores(), free_memory_mib(), gpus, tuple(of_each))


def describe_environment(device: str) -> dict[str, Any]:
    """Return versions and hardware of a run on a torch device, as plain data."""
    on_gpu = device.startswith("cuda")
    installed = {
        d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions() if d.metadata["Name"]
    }
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "instructions": cpu_instructions(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "device": device,
        "device_name": _gpu_name(device) if on_gpu else cpu_name(),
        "kernels": kernels_for(device),
        "driver": driver_version() if on_gpu else None,
        "variables": {name: value for name in VARIABLES if (value := os.environ.get(name)) is not None},
        "deterministic": "no: CUDA kernels may add in any order" if on_gpu else "yes, for the same number of threads",
        "revision": code_revision(),
        "installed": dict(sorted(installed.items())),
    }


def environment_id(environment: Mapping[str, Any]) -> str:
    """Return the identity of an environment: of its parts that may change digits."""
    return identity(identity_facts(environment))


def identity_facts(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may change digits: packages, kind of device, a GPU's name, instruction sets.

    The version of dfqbench is not in it, since identities of cells hash its code and their precision.
    """
    device = environment["device"].partition(":")[0]
    packages = {name: version for name, version in environment["packages"].items() if name != "dfqbench"}
    gpu = {} if device == "cpu" else {"device_name": environment["device_name"]}
    facts = {key: value for key, value in environment.items() if key not in NOT_IDENTITY}
    return facts | {"packages": packages, "device": device} | gpu


def write_environment(run: Path, environment: Mapping[str, Any], name: str) -> None:
    """Write the description of an environment into a run's folder; one without what torch reports replaces none.

    Machines of one environment whose hardware differs have a file each.

    Args:
        run: the run's folder.
        environment: result of `describe_environment`, perhaps with what torch reports.
        name: its identity.
    """
    path = _file(run, environment, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if "torch" in environment or not path.exists():
        write_json(path, dict(environment))


def knows_torch(run: Path, environment: Mapping[str, Any], name: str) -> bool:
    """Check that the description of an environment on this hardware holds what torch reports."""
    return "torch" in _described(_file(run, environment, name))


def _file(run: Path, environment: Mapping[str, Any], name: str) -> Path:
    first = run / "environments" / f"{name}.json"
    hardware = {key: environment.get(key) for key in HARDWARE}
    known = _described(first)
    if not known or {key: known.get(key) for key in HARDWARE} == hardware:
        return first
    return first.with_name(f"{name}.{identity(hardware)}.json")


def _described(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return description if isinstance(description, dict) else {}


@cache
def code_revision() -> str | None:
    """Return the package's git revision, with `+` where files differ from it; None outside a checkout."""
    git = shutil.which("git")
    folder = str(Path(__file__).parent)
    if git is None:
        return None
    commands = (
        ("ls-files", "--error-unmatch", __file__),
        ("rev-parse", "HEAD"),
        ("status", "--porcelain", "--untracked-files=no", folder),
    )
    try:
        _, revision, changes = (_output(git, "-C", folder, *arguments) for arguments in commands)
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+" if changes else "")


def given_command() -> str:
    """Return the command line of this process, as a shell reads it."""
    program, *arguments = sys.argv or [""]
    name = Path(program).name
    return shlex.join(["dfqbench" if name == "__main__.py" else name, *arguments])


def resolve_device(device: str) -> str:
    """Turn `auto` into `cuda` where a GPU and a CUDA build of torch are here, else `cpu`."""
    if device != "auto":
        return device
    return "cuda" if gpu_names() and "+cpu" not in (_version("torch") or "") else "cpu"


def resolve_precision(precision: str, device: str) -> Precision:
    """Turn `auto` into the fastest precision that the torch device has instructions for."""
    if precision != "auto":
        return Precision(precision)
    fast = device.startswith("cuda") or BFLOAT16_FLAGS & cpu_flags()
    return Precision.MIXED_BFLOAT16 if fast else Precision.FLOAT32_FAST


@cache
def cpu_flags() -> frozenset[str]:
    """Return the processor's instruction sets; empty outside Linux."""
    return frozenset((_cpu_info("flags", "Features") or "").split())


def cpu_instructions() -> list[str]:
    """Return the processor's vendor, by which MKL chooses its kernels, and its instruction sets that count."""
    return [_cpu_info("vendor_id", "CPU implementer") or "unknown", *sorted(cpu_flags() & INSTRUCTIONS)]


@cache
def cpu_name() -> str:
    """Return the processor's name."""
    name = _cpu_info("model name")
    return (platform.processor() or platform.machine()) if name is None else name


@cache
def gpu_names() -> tuple[str, ...]:
    """Return the names of NVIDIA GPUs."""
    return _ask_driver("name")


@cache
def gpu_uuids() -> tuple[str, ...]:
    """Return the UUIDs of NVIDIA GPUs."""
    return _ask_driver("uuid")


@cache
def driver_version() -> str | None:
    """Return the version of NVIDIA's driver, or None."""
    return next(iter(_ask_driver("driver_version")), None)


def visible_gpus(variables: Mapping[str, str] | None = None) -> tuple[tuple[str, str], ...]:
    """Return the name for CUDA_VISIBLE_DEVICES and the product name of every GPU that this process may use."""
    names = gpu_names()
    listed = (os.environ if variables is None else variables).get(VISIBLE)
    if listed is None:
        return tuple((str(index), name) for index, name in enumerate(names))
    gpus = []
    for entry in map(str.strip, listed.split(",")):
        if not entry or entry.startswith("-"):
            break
        card = _card(entry)
        # A part of a GPU (MIG) has a UUID of its own.
        product = names[0] if len(set(names)) == 1 else "GPU"
        gpus.append((entry, product if card is None or card >= len(names) else names[card]))
    return tuple(gpus)


def _card(entry: str) -> int | None:
    """Return the driver's number of a GPU in CUDA_VISIBLE_DEVICES, which may be the beginning of its UUID."""
    if entry.isdigit():
        return int(entry)
    return next((number for number, uuid in enumerate(gpu_uuids()) if uuid.startswith(entry)), None)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu_name(device: str) -> str:
    index, gpus = int(device.partition(":")[2] or 0), visible_gpus()
    return gpus[index][1] if index < len(gpus) else "unknown GPU"


def _cpu_info(*keys: str) -> str | None:
    """Return the first value of a key in Linux's /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(keys)), None)


def _ask_driver(field: str) -> tuple[str, ...]:
    """Return a field of each NVIDIA GPU; empty without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        output = _output(tool, f"--query-gpu={field}", "--format=csv,noheader")
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in output.splitlines() if line.strip())


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603 - on the path
    return done.stdout.strip()
