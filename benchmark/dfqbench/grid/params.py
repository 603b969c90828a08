"""Parameters from a grid file or the command line to a method's dataclass, and back to plain data."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Union

from pydantic import TypeAdapter, ValidationError

from dfqbench.api.errors import DfqError, UsageError, unknown_name

_CONTAINERS = (tuple, list, dict, set, frozenset)
_LISTED = "`dfqbench methods show {}` lists the parameters"


def build_params(params_type: type[Any], overrides: Mapping[str, object], where: str) -> Any:
    """Builds a params instance from its defaults and some other values.

    Strings, as the command line gives them, are read as the field's type: `1e-4`, `true`, `none` where the field
    may be None, `1,2,3` or JSON for containers.

    Args:
        params_type: a frozen dataclass with a default for every field.
        overrides: values by field name.
        where: who asks, for messages (`zeroq`, say).

    Returns:
        An instance of `params_type`.

    Raises:
        UsageError: a name is unknown, or a value does not fit its field.
    """
    fields = {field.name: field for field in dataclasses.fields(params_type) if field.init}
    for name in overrides:
        if name not in fields:
            raise unknown_name(f"parameter of {where}", name, fields)
    try:
        # Annotations may be strings that only the defining module can resolve.
        hints = typing.get_type_hints(params_type)
        values = {name: _read(value, hints[name]) for name, value in overrides.items()}
        params = TypeAdapter(params_type).validate_python(values)
    except ValidationError as error:
        raise _value_error(error, overrides, where) from error
    except DfqError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise UsageError(f"parameters of {where}: {type(error).__name__}: {text}", _LISTED.format(where)) from error
    for name in overrides:
        value = getattr(params, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"parameter {where}.{name} is {value}", "give a finite number")
    return params


def params_dict(params: Any) -> dict[str, Any]:
    """The parameters as JSON-able data, for records and identities; `build_params` reads it back."""
    data: dict[str, Any] = TypeAdapter(type(params)).dump_python(params, mode="json")
    return data


def _read(value: object, hint: Any) -> object:
    if not isinstance(value, str):
        return value
    text = value.strip()
    union = typing.get_origin(hint) in {Union, types.UnionType}
    choices = typing.get_args(hint) if union else (hint,)
    if type(None) in choices and text.lower() in {"none", "null"}:
        return None
    if any((typing.get_origin(choice) or choice) in _CONTAINERS for choice in choices):
        try:
            return json.loads(text)
        except ValueError:
            return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _value_error(error: ValidationError, overrides: Mapping[str, object], where: str) -> UsageError:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    name = path[0] if path else ""
    message = first["msg"][:1].lower() + first["msg"][1:]
    given = f", not {overrides[name]!r}" if name in overrides else ""
    dotted = f" {where}.{name}" if name else f"s of {where}"
    return UsageError(f"parameter{dotted}: {message}{given}", _LISTED.format(where))
