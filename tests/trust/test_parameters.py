"""Parameters of every built-in method and quantizer refuse numbers that make no sense."""

from __future__ import annotations

import dataclasses
import typing

import pytest
from pydantic import TypeAdapter, ValidationError

from dfqbench.api.method import Method, Quantizer
from dfqbench.plugins import load_plugins

PLUGINS = load_plugins()
CLASSES: list[type[Method] | type[Quantizer]] = [
    *(PLUGINS.method_class(name) for name in PLUGINS.methods),
    *(PLUGINS.quantizer_class(name) for name in PLUGINS.quantizers),
]
NUMBERS = [
    pytest.param(cls.params_type, field.name, id=f"{cls.name}.{field.name}")
    for cls in CLASSES
    for field in dataclasses.fields(cls.params_type)
    if isinstance(field.default, int | float) and not isinstance(field.default, bool)
]


@pytest.mark.parametrize(("params_type", "name"), NUMBERS)
def test_number_has_a_lower_bound(params_type: type[typing.Any], name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(params_type).validate_python({name: -(10**9)})


def test_there_are_numbers() -> None:
    assert len(NUMBERS) > 50
