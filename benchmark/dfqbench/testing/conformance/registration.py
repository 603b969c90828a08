"""Checks of the offer: what the host reads before it runs anything."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterable

from dfqbench.api import describe_params
from dfqbench.plugins.params import build_params, params_dict
from dfqbench.report.literature.published import read_numbers
from dfqbench.testing.conformance.fault import Fault
from dfqbench.testing.conformance.method_under_test import MethodUnderTest, blamed

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


def contract(method: MethodUnderTest) -> Iterable[str]:
    """The import string resolves to a class that keeps the contract; claims that come with it can be read."""
    _ = method.method_class
    method.instance()
    for file in method.plugins.claims.values():
        if file.origin == method.offer.origin:
            with blamed("reading its claims"):
                read_numbers(file.path)
    return ()


def light(method: MethodUnderTest) -> Iterable[str]:
    """Importing the offer and the class imports no heavy library; looked at in a fresh interpreter."""
    offer = method.offer
    arguments = json.dumps([list(HEAVY), offer.load, str(offer.path or ""), _entry_modules(method)])
    command = [sys.executable, "-c", _PROBE, arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=IMPORT_LIMIT)  # noqa: S603 - our own interpreter
    except subprocess.TimeoutExpired as error:
        raise Fault(f"importing it did not end within {IMPORT_LIMIT} s", "compute nothing at import") from error
    for line in done.stdout.splitlines():
        if line.startswith("HEAVY "):
            library, file, number = json.loads(line.removeprefix("HEAVY "))
            raise Fault(
                f"listing it imports {library} ({file}, line {number})",
                f"import {library} inside `synthesize`, and for annotations below `if TYPE_CHECKING:`",
            )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Fault(f"importing it in a fresh interpreter fails: {last}", "repair the import")
    return ()


def _entry_modules(method: MethodUnderTest) -> list[str]:
    from importlib.metadata import entry_points

    from dfqbench.hookspecs import ENTRY_POINTS

    if method.offer.path is not None:
        return []
    points = entry_points(group=ENTRY_POINTS)
    return sorted({p.module for p in points if p.dist is not None and p.dist.name == method.offer.origin})


def parameters(method: MethodUnderTest) -> Iterable[str]:
    """Parameters are a frozen dataclass with defaults, survive JSON, and say what they mean."""
    params_type = method.method_class.params_type
    defaults = params_type()
    plain = json.loads(json.dumps(params_dict(defaults)))
    with blamed("building the parameters from their own values as JSON"):
        again = build_params(params_type, plain, method.name)
    if again != defaults:
        changed = [
            f.name for f in dataclasses.fields(params_type) if getattr(again, f.name) != getattr(defaults, f.name)
        ]
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
