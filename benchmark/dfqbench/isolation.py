"""Keeps one plugin's code from harming the others: rolls back failed imports, runs a local file as a module."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from dfqbench.api.errors import PluginError

PLUGIN_FAILURES = (Exception, SystemExit)
"""What plugin code may raise without stopping the host; Ctrl-C still does."""


@contextlib.contextmanager
def rolled_back(owner: str) -> Iterator[None]:
    """Undoes the imports of `owner`'s modules when the block fails.

    Only the plugin's own modules are forgotten. Libraries that it pulled in stay: they are whole (Python itself drops
    a module whose import fails), and several, torch among them, cannot be imported twice in one process.

    What the plugin prints goes to stderr, so that `--json` stays JSON.

    Args:
        owner: the plugin's top-level package or module.
    """
    before = dict(sys.modules)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except BaseException:
        _forget(owner, before)
        raise


def _forget(owner: str, before: dict[str, ModuleType]) -> None:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != owner or before.get(name) is module:
            continue
        del sys.modules[name]
        parent, _, child = name.rpartition(".")
        holder = sys.modules.get(parent)
        if holder is not None and getattr(holder, child, None) is module:
            delattr(holder, child)


class _UncachedLoader(SourceFileLoader):
    """Reads the source itself, always: no stale bytecode after a quick edit, no `__pycache__` beside a user's file."""

    def path_stats(self, path: str) -> dict[str, float]:
        raise OSError(path)


def local_module_name(path: Path) -> str:
    """The name under which a local plugin file is imported; the same in every process."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    return f"_dfqbench_local_{digest}_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}"


def import_local(path: Path) -> ModuleType:
    """Runs a local file as a module of its own name, which stays in `sys.modules` for `Offer.load`."""
    name = local_module_name(path)
    spec = importlib.util.spec_from_file_location(name, path, loader=_UncachedLoader(name, str(path)))
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} cannot be imported", "hand over a Python file")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: dataclasses look their module up while the file is executed.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
