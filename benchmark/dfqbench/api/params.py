"""Hyper-parameters: frozen dataclasses whose fields carry meaning, unit and source."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NoParams:
    """Parameters of a method without any."""


@dataclass(frozen=True, slots=True)
class ParamInfo:
    """Description of one parameter, as `methods show` prints it.

    Attributes:
        name: field name.
        type: type as written.
        default: default value.
        help: meaning.
        unit: unit, or empty.
        source: where the default was read: `released code`, `paper`, `inferred: ...` or a citation.
    """

    name: str
    type: str
    default: Any
    help: str
    unit: str
    source: str


def param(default: Any, *, help: str, source: str, unit: str = "") -> Any:
    """Return a documented dataclass field, to be written as the default of the field.

    Args:
        default: the default value.
        help: what the value does.
        source: where the default was read (`released code`, `paper`, `inferred: reason`).
        unit: unit of the value, or empty.
    """
    return dataclasses.field(default=default, metadata={"help": help, "source": source, "unit": unit})


def describe_params(params_type: type[Any]) -> list[ParamInfo]:
    """Return the descriptions of a dataclass's parameters, in order of definition."""
    return [
        ParamInfo(
            name=field.name,
            type=field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type)),
            default=None if field.default is dataclasses.MISSING else field.default,
            **{key: str(field.metadata.get(key, "")) for key in ("help", "unit", "source")},
        )
        for field in dataclasses.fields(params_type)
    ]
