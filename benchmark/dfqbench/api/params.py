"""Hyper-parameters: frozen dataclasses whose every field says its meaning, unit and source."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NoParams:
    """The parameters of a method that has none."""


@dataclass(frozen=True, slots=True)
class ParamInfo:
    """What `methods show` prints of one parameter.

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
    """A dataclass field that documents itself.

    Args:
        default: the default value.
        help: what the value does.
        source: where the default was read (`released code`, `paper`, `inferred: reason`).
        unit: unit of the value, or empty.

    Returns:
        A `dataclasses.field` with that default.
    """
    return dataclasses.field(default=default, metadata={"help": help, "source": source, "unit": unit})


def describe_params(params_type: type[Any]) -> list[ParamInfo]:
    """Lists the parameters of a params class, in order of definition."""
    return [
        ParamInfo(
            name=field.name,
            type=field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type)),
            default=None if field.default is dataclasses.MISSING else field.default,
            help=str(field.metadata.get("help", "")),
            unit=str(field.metadata.get("unit", "")),
            source=str(field.metadata.get("source", "")),
        )
        for field in dataclasses.fields(params_type)
    ]
