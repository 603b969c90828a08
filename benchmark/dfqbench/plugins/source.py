"""Which source text makes a method what it is, and a hash of it: an edited loss must never reuse a stale cell."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dfqbench.api.errors import PluginError


@dataclass(frozen=True, slots=True)
class _Package:
    """A top-level package on disk.

    Attributes:
        name: its import name.
        roots: its folders (a namespace package may have several).
    """

    name: str
    roots: tuple[Path, ...]

    def file(self, module: str) -> Path | None:
        """The file of a module of this package, without importing anything; None where there is none."""
        top, *parts = module.split(".")
        if top != self.name:
            return None
        for root in self.roots:
            place = root.joinpath(*parts)
            for candidate in (place / "__init__.py", place.parent / f"{place.name}.py"):
                if candidate.is_file() and candidate.is_relative_to(root):
                    return candidate
        return None

    def module(self, file: Path) -> tuple[str, bool] | None:
        """Import name of a file of this package, and whether it is a package's `__init__`."""
        for root in self.roots:
            if file.is_relative_to(root):
                parts = file.relative_to(root).with_suffix("").parts
                is_package = parts[-1] == "__init__"
                return ".".join((self.name, *(parts[:-1] if is_package else parts))), is_package
        return None


def source_files(load: str, path: Path | None = None) -> list[Path]:
    """The files whose text identifies a plugin's method.

    For a local plugin file: that file. For a module in a package: every `.py` file of the folder that holds it,
    recursively, and every module of the same top-level package that these import, directly or not. Imports are read
    from the syntax tree (functions included); modules named only at run time are not seen.

    Args:
        load: `module:attribute`, as in `LoadedOffer.load`.
        path: the local plugin file, as in `LoadedOffer.path`.

    Returns:
        Absolute paths, sorted.

    Raises:
        PluginError: the module is not found, or has no source file.
    """
    if path is not None:
        return [path.resolve()]
    module = load.partition(":")[0]
    package = _package(module.partition(".")[0])
    if package is None:
        return [_origin(module)]
    start = package.file(module)
    if start is None:
        raise PluginError(f"the source of module '{module}' is not found", "install the plugin with its .py files")
    found: set[Path] = set()
    waiting = [*start.parent.rglob("*.py"), *_files_of(module, package)]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        waiting += [item for name in _imports(file, package) for item in _files_of(name, package)]
    return sorted(found)


def source_hash(files: Iterable[Path]) -> str:
    """SHA-256 over the files' names, relative to their common folder, and their text.

    It does not depend on where the files are installed, on their order, or on the kind of line ends.
    """
    paths = sorted({file.resolve() for file in files})
    common = Path(os.path.commonpath([file.parent for file in paths])) if paths else Path()
    digest = hashlib.sha256()
    for file in paths:
        text = file.read_bytes().replace(b"\r\n", b"\n")
        name = file.relative_to(common).as_posix().encode()
        # Lengths keep "ab" + "c" apart from "a" + "bc".
        digest.update(b"%d %s %d " % (len(name), name, len(text)) + text)
    return digest.hexdigest()


def _package(name: str) -> _Package | None:
    """The top-level package of that name; None if it is a single module."""
    loaded = sys.modules.get(name)
    places = getattr(loaded, "__path__", None)
    if loaded is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            raise PluginError(f"module '{name}' is not found", "install the plugin that offers it")
        places = spec.submodule_search_locations
    return None if places is None else _Package(name, tuple(Path(place).resolve() for place in places))


def _origin(module: str) -> Path:
    """The file of a module outside any package."""
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    if loaded is None:
        spec = importlib.util.find_spec(module)
        file = None if spec is None else spec.origin
    if file is None or not Path(file).is_file():
        raise PluginError(f"the source of module '{module}' is not found", "install the plugin with its .py files")
    return Path(file).resolve()


def _files_of(module: str, package: _Package) -> Iterator[Path]:
    """What importing a module runs: the module, and the `__init__` of every package above it."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        file = package.file(".".join(parts[:end]))
        if file is not None:
            yield file


def _imports(file: Path, package: _Package) -> Iterator[str]:
    """Names that a file imports from its own top-level package; attributes of modules may be among them."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        # Its text is hashed all the same; Python itself will say what is wrong when it is imported.
        return
    here = package.module(file)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level and here is not None:
                name, is_package = here
                parts = name.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join((*kept, *(base.split(".") if base else ())))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
