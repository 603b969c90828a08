"""`dfqbench doctor`: check environment, devices, data folders and plugins."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dfqbench.cli.options import DataOption, JsonOption, PluginOption

if TYPE_CHECKING:
    from dfqbench.plugins import Plugins
    from dfqbench.targets.health import Finding

PACKAGES = ("dfqbench", "torch", "torchvision", "timm", "numpy", "scikit-learn", "safetensors", "pydantic", "pandas")
"""Packages whose versions are shown."""
OPTIONAL = ("pytorchcv",)
"""Packages that may be absent."""


def doctor(
    data: DataOption = None,
    images: Annotated[
        int, typer.Option("--images", min=0, help="Images on which each network is tried; 0: none.")
    ] = 200,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check environment, devices, data folders and plugins.

    The exit status is 1 if something is broken.
    """
    from dfqbench.plugins import load_plugins

    plugins = load_plugins(plugin or ())
    findings = [*_environment(), *_devices(), *_plugins(plugins), *_data(data or [], plugins, images)]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        from tabulate import tabulate

        rows = [[finding.what, finding.status, finding.detail] for finding in findings]
        typer.echo(tabulate(rows, ("what", "status", "detail"), disable_numparse=True))
    broken = sum(finding.status == "broken" for finding in findings)
    if broken:
        typer.echo(f"{broken} broken", err=True)
        raise typer.Exit(1)


def _environment() -> Iterator[Finding]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from dfqbench.targets.health import Finding

    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    for name in (*PACKAGES, *OPTIONAL):
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            if name in OPTIONAL:
                yield Finding(name, "missing", f"optional; pip install 'dfqbench[{name}]'")
            else:
                yield Finding(name, "broken", "not installed; pip install dfqbench")


def _devices() -> Iterator[Finding]:
    import os

    import torch

    from dfqbench.accel.backend import triton_version, why_no_triton
    from dfqbench.targets.health import Finding

    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    bf16 = "bfloat16 in hardware" if native else "bfloat16 emulated"
    threads = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    yield Finding("cpu", "ok", f"{threads}, {torch.backends.cpu.get_cpu_capability()}, {bf16}")
    if not torch.cuda.is_available():
        yield Finding("cuda", "missing", "no device")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16" if properties.major >= 8 else "no bfloat16"
        yield Finding(f"cuda:{index}", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}")
    version = triton_version()
    if version is None:
        yield Finding("triton", "missing", f"{why_no_triton()}; steps on GPUs are slower without")
    else:
        yield Finding("triton", "ok", version)


def _plugins(plugins: Plugins) -> Iterator[Finding]:
    from dfqbench.targets.health import Finding

    yield Finding("methods", "ok", ", ".join(plugins.methods) or "none")
    for broken in plugins.broken:
        yield Finding(f"plugin {broken.name}", "broken", f"{broken.origin}: {broken.message}")


def _data(data: Sequence[Path], plugins: Plugins, images: int) -> Iterator[Finding]:
    from dfqbench.api.errors import DfqError
    from dfqbench.targets.catalogue import Catalogue
    from dfqbench.targets.folders import data_folders
    from dfqbench.targets.health import Finding, examine

    families = plugins.model_families
    usable: list[Path] = []
    for folder in data_folders(data):
        try:
            Catalogue.discover([folder], families=families)
        except DfqError as error:
            yield Finding("data folder", "broken", str(error))
        else:
            usable.append(folder)
            yield Finding("data folder", "ok", str(folder))
    yield from examine(Catalogue.discover(usable, plugins.targets.values(), families), images, families)
