"""Import plugin code so that a failure leaves no trace in the process."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from dfqbench.api.errors import PluginError

PLUGIN_FAILURES = (Exception, SystemExit)
"""Exceptions of plugin code that do not stop the host; Ctrl-C still does."""


@contextlib.contextmanager
def kept_folder() -> Iterator[None]:
    """Restore the working folder after plugin code, if that is possible."""
    try:
        before = Path.cwd()
    except OSError:
        before = None
    try:
        yield
    finally:
        if before is not None:
            with contextlib.suppress(OSError):
                os.chdir(before)


@contextlib.contextmanager
def rollback_imports(owner: str) -> Iterator[None]:
    """Remove the modules of `owner` from `sys.modules` if the block fails; send what it prints to stderr.

    The working folder is restored.

    Only the plugin's own modules are removed. Libraries that it imported stay: Python itself drops a module whose
    import fails, and several, torch among them, cannot be imported twice in one process.

    Args:
        owner: the plugin's top-level package or module.
    """
    before = dict(sys.modules)
    try:
        # Standard output is for results: `--json` must stay JSON.
        with kept_folder(), contextlib.redirect_stdout(sys.stderr):
            yield
    except BaseException:
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] != owner or before.get(name) is module:
                continue
            del sys.modules[name]
            parent, _, child = name.rpartition(".")
            package = sys.modules.get(parent)
            if getattr(package, child, None) is module:
                delattr(package, child)
        raise


class _UncachedLoader(SourceFileLoader):
    """Read the source itself: no stale bytecode after a quick edit, no `__pycache__` beside a user's file."""

    def path_stats(self, path: str) -> dict[str, float]:
        raise OSError(path)


def local_module_name(path: Path) -> str:
    """Return the name under which a local plugin file is imported; the same in every process."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    return f"_dfqbench_local_{digest}_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}"


def import_local(path: Path) -> ModuleType:
    """Import a Python file as a module named by `local_module_name`, which stays in `sys.modules`."""
    name = local_module_name(path)
    spec = importlib.util.spec_from_file_location(name, path, loader=_UncachedLoader(name, str(path)))
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} cannot be imported", "hand over a Python file")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: dataclasses look their module up while the file is executed.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
