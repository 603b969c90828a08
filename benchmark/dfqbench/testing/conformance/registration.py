"""Checks before plugin code runs in this process: the offer, and a dry run in a sandbox."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points

from dfqbench.api import describe_params
from dfqbench.hookspecs import ENTRY_POINTS
from dfqbench.plugins.params import build_params, params_dict
from dfqbench.report.literature.published import read_numbers
from dfqbench.testing.conformance.findings import Fault
from dfqbench.testing.conformance.plugin_under_test import PluginUnderTest, plugin_code

HEAVY = ("torch", "torchvision", "timm", "pandas", "matplotlib", "sklearn", "scipy")
"""Libraries that make `methods list` slow."""
IMPORT_LIMIT = 300
"""Seconds in which a light module must have been imported, on the busiest of machines."""

_PROBE = """
import importlib, json, sys, traceback
from pathlib import Path
from dfqbench.isolation import import_local
heavy, load, path, entries = json.loads(sys.argv[1])

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in heavy:
            frames = [f for f in traceback.extract_stack() if "importlib" not in f.filename]
            print("HEAVY " + json.dumps([name, frames[-2].filename, frames[-2].lineno]), flush=True)
            heavy.remove(name)
        return None

sys.meta_path.insert(0, Watch())
for module in entries:
    importlib.import_module(module)
if path:
    import_local(Path(path))
else:
    importlib.import_module(load.partition(":")[0])
"""


def contract(plugin: PluginUnderTest) -> None:
    """Check that the import string names a class that keeps the contract, and that its claims can be read."""
    _ = plugin.plugin_class  # raises what the class breaks
    plugin.instance()
    for file in plugin.plugins.claims.values():
        if file.origin == plugin.offer.origin:
            with plugin_code("reading its claims"):
                read_numbers(file.path)


def light(plugin: PluginUnderTest) -> None:
    """Check, in a fresh interpreter, that importing the offer and the class imports no heavy library."""
    offer = plugin.offer
    points = entry_points(group=ENTRY_POINTS)  # a local file's origin is its path, the name of no distribution
    modules = sorted({point.module for point in points if point.dist and point.dist.name == offer.origin})
    arguments = json.dumps([HEAVY, offer.load, str(offer.path or ""), modules])
    command = [sys.executable, "-P", "-c", _PROBE, arguments]  # the import path of a run
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=IMPORT_LIMIT)  # noqa: S603 - our own interpreter
    except subprocess.TimeoutExpired as error:
        raise Fault(f"importing it did not end within {IMPORT_LIMIT} s", "compute nothing at import") from error
    for line in done.stdout.splitlines():
        if line.startswith("HEAVY "):
            library, file, number = json.loads(line.removeprefix("HEAVY "))
            raise Fault(
                f"listing it imports {library} ({file}, line {number})",
                f"import {library} inside `synthesize` or `quantize`, and for annotations below `if TYPE_CHECKING:`",
            )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Fault(f"importing it in a fresh interpreter fails: {last}", "repair the import")


def parameters(plugin: PluginUnderTest) -> Iterable[str]:
    """Check that parameters are a frozen dataclass with defaults, survive JSON, and say what they mean."""
    params_type = plugin.plugin_class.params_type
    defaults = params_type()
    plain = json.loads(json.dumps(params_dict(defaults)))
    with plugin_code("building the parameters from their own values as JSON"):
        again = build_params(params_type, plain, plugin.name)
    names = [field.name for field in dataclasses.fields(params_type)]
    changed = [name for name in names if getattr(again, name) != getattr(defaults, name)]
    if changed:
        raise Fault(
            f"parameter {', '.join(changed)} does not survive JSON",
            "give it a type that does: numbers, strings, booleans, tuples of them",
        )
    silent = [info.name for info in describe_params(params_type) if not (info.help and info.source)]
    if silent:
        yield (
            f"parameter {', '.join(silent)} does not say what it means and where its value was read; "
            f"write `{silent[0]}: ... = param(DEFAULT, help=..., source=...)`"
        )


def ends(plugin: PluginUnderTest) -> None:
    """Check that a run on a toy network comes to its end."""
    result = plugin.dry_run
    if not result.ended:
        raise Fault(
            f"it did not end within {plugin.limit:.0f} s on a toy network",
            "scale its steps by ctx.budget.training_steps(...) or .image_steps(...), and leave no endless loop",
        )
    if result.exit_status is not None:
        raise Fault(
            f"it ended the process with status {result.exit_status}",
            "raise an exception instead of os._exit; a negative status is the signal that killed it",
        )
    if result.error:
        raise Fault(f"it failed in a process of its own: {result.error}", "repair it there")


def confined(plugin: PluginUnderTest) -> None:
    """Check that nothing is written outside the work folder, read under a data folder, or fetched."""
    result = plugin.dry_run
    for paths, violation, hint in (
        (result.read, "opens real data:", "data-free methods get no data; remove it"),
        (result.written, "writes outside its work folder:", "write below ctx.workdir only, or better nothing at all"),
        (result.connected, "connects to", "fetch nothing while it runs; ship files in the package"),
    ):
        if paths:
            raise Fault(f"it {violation} {', '.join(paths[:3])}", hint)
