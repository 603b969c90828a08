"""The source files of a plugin and their hash, a part of a cell's identity: results of edited code are not reused."""

from __future__ import annotations

import ast
import functools
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
    """A top-level package on disk; a namespace package may have several folders."""

    name: str
    folders: tuple[Path, ...]

    def file(self, module: str) -> Path | None:
        """Return the file of a module of this package, without importing anything; None if there is none."""
        top, *parts = module.split(".")
        for folder in self.folders if top == self.name else ():
            place = folder.joinpath(*parts)
            for candidate in (place / "__init__.py", place.parent / f"{place.name}.py"):
                if candidate.is_file() and candidate.is_relative_to(folder):
                    return candidate
        return None

    def imported_files(self, module: str) -> Iterator[Path]:
        """Yield the files that importing a module runs: the module, and the `__init__` of every package above it."""
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            file = self.file(".".join(parts[:end]))
            if file is not None:
                yield file

    def parents(self, file: Path) -> tuple[str, ...]:
        """Return the names of the packages that a file is in, for relative imports."""
        for folder in self.folders:
            if file.is_relative_to(folder):
                return (self.name, *file.relative_to(folder).parts[:-1])
        return ()


def source_files(load: str, path: Path | None = None) -> list[Path]:
    """Return the files whose text identifies a plugin's method, absolute and sorted.

    For a local plugin file: that file. For a module in a package: every `.py` file of the folder that holds it,
    recursively, and every module of the same top-level package that these import, directly or not. Imports are read
    from the syntax tree (functions included); modules named only at run time are missed.

    Args:
        load: `module:attribute`, as in `LoadedOffer.load`.
        path: the local plugin file, as in `LoadedOffer.path`.

    Raises:
        PluginError: the module is not found, or has no source file.
    """
    if path is not None:
        return [path.resolve()]
    module = load.partition(":")[0]
    top = module.partition(".")[0]
    folders, single_file = _located(top)
    if folders is None and single_file is not None and module == top:
        return [single_file]
    package = _Package(top, folders or ())
    start = package.file(module)
    if start is None:
        raise PluginError(f"the source of module '{module}' is not found", "install the plugin with its .py files")
    files: set[Path] = set()
    modules: set[str] = set()
    waiting = [*start.parent.rglob("*.py"), *package.imported_files(module)]
    while waiting:
        file = waiting.pop()
        if file not in files:
            files.add(file)
            new = _imports(file.read_bytes(), package.parents(file)) - modules
            modules |= new
            waiting += [imported for name in new for imported in package.imported_files(name)]
    return sorted(files)


def source_hash(files: Iterable[Path]) -> str:
    """Return the SHA-256 of the files' names, relative to their common folder, and of their text.

    It does not depend on where the files are installed, on their order, or on the kind of line ends.
    """
    paths = sorted({file.resolve() for file in files})
    common = Path(os.path.commonpath([file.parent for file in paths])) if paths else Path()
    digest = hashlib.sha256()
    for file in paths:
        text = file.read_bytes().replace(b"\r\n", b"\n")
        name = file.relative_to(common).as_posix().encode()
        # Lengths distinguish "ab" + "c" from "a" + "bc".
        digest.update(b"%d %s %d " % (len(name), name, len(text)) + text)
    return digest.hexdigest()


def _located(name: str) -> tuple[tuple[Path, ...] | None, Path | None]:
    """Return the folders of a top-level package, or None and the file of a top-level module."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        folders, file = getattr(loaded, "__path__", None), getattr(loaded, "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            raise PluginError(f"module '{name}' is not found", "install the plugin that offers it")
        folders, file = spec.submodule_search_locations, spec.origin
    if folders is not None:
        return tuple(Path(folder).resolve() for folder in folders), None
    return None, Path(file).resolve() if file is not None and Path(file).is_file() else None


@functools.cache
def _imports(text: bytes, parents: tuple[str, ...]) -> frozenset[str]:
    """Return the absolute names that a file in the package `parents` imports; attributes of modules may be among them.

    Kept by text: a plan asks for the files of many plugins, which share most of them.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        # Importing it will raise the error; its text is hashed all the same.
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level and parents:
                base = ".".join((*parents[: len(parents) - node.level + 1], *filter(None, [base])))
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return frozenset(names)
