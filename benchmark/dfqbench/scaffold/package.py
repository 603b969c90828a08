"""A package with one method, from templates."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dfqbench import __version__
from dfqbench.api.errors import UsageError, unknown_name
from dfqbench.api.method import API_VERSION

KINDS = ("images", "generator")
"""Kinds of methods: a fixed set of images, optimized directly (as ZeroQ), or a generator (as GDFQ)."""
TEMPLATES = Path(__file__).parent / "templates"

_NAME = re.compile(r"(?=.{1,60}$)[a-z][a-z0-9]*([_-][a-z0-9]+)*")


def new_package(name: str, kind: str, into: Path, taken: Iterable[str] = ()) -> list[Path]:
    """Write an installable package with a working method.

    Args:
        name: of the method; the package is called `dfqbench-NAME`, its folder NAME.
        kind: one of `KINDS`.
        into: an existing folder, in which the package's folder is made.
        taken: names of other methods and quantizers.

    Returns:
        The files, the package's folder first.

    Raises:
        UsageError: the name or kind is not valid, the name is taken, or the folder exists already.
    """
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"'{name}' cannot be the name of a method",
            "begin with a lower case letter; go on with lower case letters and digits, words joined by '_' or '-', "
            "60 characters at most",
        )
    if kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    if name in set(taken):
        raise UsageError(f"the name '{name}' is taken", "choose another one; see `dfqbench methods list`")
    if not into.is_dir():
        raise UsageError(f"there is no folder {into}", "make it, or give another one with --into")
    folder = into / name
    if folder.exists():
        raise UsageError(f"{folder} exists already", "choose another name, or another place with --into")
    texts = _rendered(name, kind)
    try:
        for path, text in texts.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot write {folder}: {error.strerror or error}", "choose a folder that is yours"
        ) from error
    return [folder, *(folder / path for path in texts)]


def _rendered(name: str, kind: str) -> dict[str, str]:
    """Return the texts of a package by path, sorted."""
    words = re.split(r"[_-]", name)
    module = "_".join(words)
    package = f"dfqbench_{module}"
    loader = FileSystemLoader([TEMPLATES / "common", TEMPLATES / kind])
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)  # noqa: S701 - Python
    environment.globals |= {
        "name": name,
        "package": package,
        "distribution": f"dfqbench-{'-'.join(words)}",
        "class": "".join(word.capitalize() for word in words),
        "title": " ".join(word.capitalize() for word in words),
        "api": API_VERSION,
        "version": __version__,
    }
    texts = {}
    for template in environment.list_templates(extensions=["jinja"]):
        path = template.removesuffix(".jinja").replace("PACKAGE", package).replace("NAME", module)
        texts[path] = environment.get_template(template).render()
    return dict(sorted(texts.items()))
