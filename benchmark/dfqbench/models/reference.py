"""References: names of networks, such as `torchvision:resnet18?weights=random`."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from dfqbench.api.errors import InputError, UsageError, unknown_name

SCHEMES = ("torchvision", "timm", "pytorchcv", "cifar", "digits", "py")
"""Built-in families; plugins may offer more."""
CODE_SCHEME = "py"
LIBRARIES = ("timm.models", "torchvision.models", "pytorchcv.models")
"""Packages in which a manifest may name callables."""
ARCHITECTURES = {
    "cifar": tuple(f"resnet{depth}" for depth in (20, 32, 44, 56, 110)),
    "digits": ("resnet8", "mobilenet9"),
}
"""Networks of dfqbench's own families; listed here so that no name needs torch to be checked."""

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
        return ":".join(filter(None, (self.scheme, self.name, self.function)))

    @property
    def is_file(self) -> bool:
        """Whether it names a Python file rather than a module."""
        return self.scheme == CODE_SCHEME and self.name.endswith(".py")


def is_reference(text: str) -> bool:
    """Whether the text has the form `family:name` rather than that of a plain name."""
    return ":" in text


def parse_reference(text: str, families: Iterable[str] = ()) -> Reference:
    """Parse `family:name`, `py:module:function` or `py:file.py:function`, each optionally with `?key=value&...`.

    Args:
        text: the reference.
        families: families that plugins offer.

    Raises:
        UsageError: the text has another form, or the family is not known.
        InputError: one of dfqbench's own families has no such network.
    """
    bare, mark, query = text.strip().partition("?")
    scheme, colon, rest = bare.partition(":")
    known = (*SCHEMES, *families)
    if mark and not query:
        raise UsageError(f"'{text}' has no argument after the '?'", "write ?key=value&key=value, or leave the '?' out")
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
    if scheme in ARCHITECTURES and rest not in ARCHITECTURES[scheme]:
        raise unknown_name(f"{scheme} model", rest, ARCHITECTURES[scheme], error=InputError)
    return Reference(scheme, rest, "", parse_options(query))


def in_libraries(module: str) -> bool:
    """Whether a module is one of `LIBRARIES` or lies in one."""
    return any(module == library or module.startswith(f"{library}.") for library in LIBRARIES)


def parse_options(query: str) -> dict[str, Any]:
    """Parse `key=value&key=value`; a value that is not JSON, as NaN and 1e999, is a string.

    Raises:
        UsageError: an entry has no `=`, or a key is no name, or is given twice.
    """
    if not query:
        return {}
    try:
        # A '+' belongs to the value (a file name, say); parse_qsl would make it a space.
        pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=True)
    except ValueError as error:
        raise UsageError(f"'?{query}' is not a list of arguments", "write ?key=value&key=value") from error
    options: dict[str, Any] = {}
    for key, text in pairs:
        if not key.isidentifier():
            raise UsageError(f"'{key}' in '?{query}' is not the name of an argument", "write ?key=value&key=value")
        if key in options:
            raise UsageError(f"'{key}' is given twice in '?{query}'", "give each argument once")
        options[key] = text
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(text)
            json.dumps(value, allow_nan=False)
            options[key] = value
    return options
