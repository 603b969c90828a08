"""Conversion of parameters: from a grid file or the command line to a dataclass, and back to plain data."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from pydantic import TypeAdapter, ValidationError

from dfqbench.api.errors import DfqError, UsageError, unknown_name

_CONTAINERS = (tuple, list, dict, set, frozenset)


def build_params(params_type: type[Any], overrides: Mapping[str, object], where: str) -> Any:
    """Return an instance of a params class: its defaults, with some values replaced.

    Strings, as the command line gives them, are read as the field's type: `1e-4`, `true`, `none` where the field
    may be None, `1,2,3` or JSON for containers, and a name that
    the field allows beside them.

    Args:
        params_type: a frozen dataclass with a default for every field.
        overrides: values by field name.
        where: the method or quantizer, for messages (`zeroq`, say).

    Raises:
        UsageError: a name is unknown, or a value does not fit its field.
    """
    hint = f"`dfqbench methods show {where}` lists the parameters"
    fields = {field.name: field for field in dataclasses.fields(params_type) if field.init}
    for name in overrides:
        if name not in fields:
            raise unknown_name(f"parameter of {where}", name, fields)
    try:
        # Annotations may be strings that only the defining module can resolve.
        hints = typing.get_type_hints(params_type)
        values = {name: _parsed(value, hints[name]) for name, value in overrides.items()}
        params = TypeAdapter(params_type).validate_python(values)
    except ValidationError as error:
        place, message = first_problem(error)
        name = place.partition(".")[0]
        given = f", not {overrides[name]!r}" if name in overrides else ""
        dotted = f" {where}.{name}" if name else f"s of {where}"
        raise UsageError(f"parameter{dotted}: {message}{given}", hint) from error
    except DfqError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise UsageError(f"parameters of {where}: {type(error).__name__}: {text}", hint) from error
    for name in overrides:
        value = getattr(params, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"parameter {where}.{name} is {value}", "give a finite number")
    return params


def params_dict(params: Any) -> dict[str, Any]:
    """Return the parameters as JSON-able data, for records and identities; `build_params` accepts it."""
    data: dict[str, Any] = TypeAdapter(type(params)).dump_python(params, mode="json")
    return data


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Return the dotted key and the message, in lower case, of the first problem of a validation."""
    problem = error.errors(include_url=False)[0]
    message = " ".join(problem["msg"].split())
    return ".".join(str(part) for part in problem["loc"]), message[:1].lower() + message[1:]


def _parsed(value: object, hint: Any) -> object:
    if not isinstance(value, str):
        return value
    text = value.strip()
    union = typing.get_origin(hint) in {Union, types.UnionType}
    choices = typing.get_args(hint) if union else (hint,)
    if type(None) in choices and text.lower() in {"none", "null"}:
        return None
    if any(typing.get_origin(choice) is Literal and text in typing.get_args(choice) for choice in choices):
        return text
    if any((typing.get_origin(choice) or choice) in _CONTAINERS for choice in choices):
        try:
            return json.loads(text)
        except ValueError:
            return [part.strip() for part in text.split(",") if part.strip()]
    return text
