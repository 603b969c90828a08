"""References: the names by which networks are found, such as `torchvision:resnet18?weights=random`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from dfqbench.api.errors import DfqError, InputError, UsageError, unknown_name

SCHEMES = ("torchvision", "timm", "pytorchcv", "cifar", "digits", "py")
"""Families that the host knows; plugins may offer further ones."""
CODE_SCHEME = "py"
LIBRARIES = ("timm.models", "torchvision.models", "pytorchcv.models")
"""Packages in which a manifest may name callables."""
ARCHITECTURES = {
    "cifar": tuple(f"resnet{depth}" for depth in (20, 32, 44, 56, 110)),
    "digits": ("resnet8",),
}
"""Names within dfqbench's own families, known without importing torch."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference.

    Attributes:
        scheme: family, for example `torchvision`; `py` for any callable.
        name: name within the family; for `py` the module's dotted name or file.
        function: callable's name for `py`, else empty.
        options: values after the `?`.
    """

    scheme: str
    name: str
    function: str
    options: Mapping[str, Any]

    @property
    def bare(self) -> str:
        """The reference without options."""
        tail = f":{self.function}" if self.function else ""
        return f"{self.scheme}:{self.name}{tail}"

    @property
    def is_file(self) -> bool:
        """Whether it names a Python file rather than a module."""
        return self.scheme == CODE_SCHEME and self.name.endswith(".py")


def is_reference(text: str) -> bool:
    """Whether the text has the form `family:name` rather than that of a plain name."""
    return ":" in text


def parse_reference(text: str, families: Iterable[str] = ()) -> Reference:
    """Reads `family:name`, `py:module:function` or `py:file.py:function`, each optionally with `?key=value&...`.

    Args:
        text: the reference.
        families: families that plugins offer.

    Raises:
        UsageError: the text has another form, or the family is not known.
    """
    bare, _, query = text.strip().partition("?")
    scheme, colon, rest = bare.partition(":")
    known = (*SCHEMES, *families)
    if not colon or not rest:
        raise UsageError(f"'{text}' is not a model reference", "write family:name, for example torchvision:resnet18")
    if scheme not in known:
        raise unknown_name("model family", scheme, known)
    if scheme == CODE_SCHEME:
        name, colon, function = rest.rpartition(":")
        if not colon or not name or not function.isidentifier():
            raise UsageError(
                f"'{text}' does not name a callable", "write py:package.module:function or py:file.py:function"
            )
        return Reference(scheme, name, function, parse_options(query))
    if not _NAME.fullmatch(rest):
        raise UsageError(f"'{rest}' is not the name of a model", "letters, digits, '_', '.' and '-' only")
    return Reference(scheme, rest, "", parse_options(query))


def unknown_architecture(reference: Reference) -> DfqError | None:
    """The error for a name that one of dfqbench's own families does not have; None for all others."""
    known = ARCHITECTURES.get(reference.scheme)
    if known is None or reference.name in known:
        return None
    return unknown_name(f"{reference.scheme} model", reference.name, known, error=InputError)


def in_libraries(module: str) -> bool:
    """Whether a module is one of `LIBRARIES` or lies in one."""
    return any(module == library or module.startswith(f"{library}.") for library in LIBRARIES)


def parse_options(query: str) -> dict[str, Any]:
    """Reads `key=value&key=value`; values are JSON, or strings where they are not JSON.

    Raises:
        UsageError: an entry has no `=`, or a key is given twice.
    """
    if not query:
        return {}
    try:
        # '+' is a plus in file names, not a space: keep it.
        pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=True)
    except ValueError as error:
        raise UsageError(f"'?{query}' is not a list of arguments", "write ?key=value&key=value") from error
    options: dict[str, Any] = {}
    for key, value in pairs:
        if key in options:
            raise UsageError(f"'{key}' is given twice in '?{query}'", "give each argument once")
        options[key] = _value(value)
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
