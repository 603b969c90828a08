"""A package with one method, from templates."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from dfqbench import __version__
from dfqbench.api.errors import UsageError, unknown_name
from dfqbench.api.method import API_VERSION

KINDS = {
    "images": "a fixed set of images, learned directly (as ZeroQ)",
    "generator": "a generator that learns while the student does (as GDFQ)",
}
"""Kinds of methods that can be started from."""

_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
_SUFFIX = ".jinja"


def new_package(name: str, kind: str, into: Path, taken: Iterable[str] = ()) -> list[Path]:
    """Writes an installable package with a working method.

    Args:
        name: of the method; the package is called `dfqbench-NAME`, its folder NAME.
        kind: a key of `KINDS`.
        into: an existing folder, in which the package's folder is made.
        taken: names that other methods have.

    Returns:
        The files, the package's folder first.

    Raises:
        UsageError: the name or kind is not valid, the name is taken, or there is such a folder already.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"'{name}' cannot be the name of a method",
            "begin with a lower case letter; go on with lower case letters and digits, words joined by '_' or '-'",
        )
    if kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    if name in set(taken):
        raise UsageError(f"there is a method '{name}' already", "choose another name; see `dfqbench methods list`")
    if not into.is_dir():
        raise UsageError(f"there is no folder {into}", "make it, or give another one with --into")
    folder = into / name
    if folder.exists():
        raise UsageError(f"{folder} exists already", "choose another name, or another place with --into")
    words = _words(name, kind)
    texts = {_place(path, words): _rendered(source, words) for path, source in _templates(kind)}
    try:
        for path, text in sorted(texts.items()):
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot write {folder}: {error.strerror or error}", "choose a folder that is yours"
        ) from error
    return [folder, *(folder / path for path in sorted(texts))]


def _words(name: str, kind: str) -> dict[str, str | int]:
    parts = re.split(r"[_-]", name)
    return {
        "name": name,
        "kind": kind,
        "package": f"dfqbench_{'_'.join(parts)}",
        "distribution": f"dfqbench-{'-'.join(parts)}",
        "class": "".join(part.capitalize() for part in parts),
        "title": " ".join(part.capitalize() for part in parts),
        "api": API_VERSION,
        "version": __version__,
    }


def _templates(kind: str) -> list[tuple[str, str]]:
    """Paths within the package, with the templates' text."""
    root = resources.files("dfqbench.scaffold") / "templates"
    return [*_below(root / "common", ""), *_below(root / kind, "src/PACKAGE/")]


def _below(folder: Traversable, prefix: str) -> list[tuple[str, str]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _below(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            found.append((prefix + entry.name.removesuffix(_SUFFIX), entry.read_text(encoding="utf-8")))
    return found


def _place(path: str, words: dict[str, str | int]) -> Path:
    return Path(path.replace("PACKAGE", str(words["package"])).replace("NAME", str(words["name"]).replace("-", "_")))


def _rendered(text: str, words: dict[str, str | int]) -> str:
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701 - Python text
    return environment.from_string(text).render(words)
