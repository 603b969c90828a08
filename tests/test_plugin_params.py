"""Parameters: parsed from text and TOML, checked, and converted back to plain data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from dfqbench.api import NoParams, UsageError
from dfqbench.plugins.params import build_params, params_dict


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Params:
    steps: int = 500
    lr: Annotated[float, Field(gt=0)] = 0.5
    nesterov: bool = False
    cap: float | None = 2.0
    init: Literal["released", "intended"] = "released"
    widths: tuple[int, ...] = (1, 2)
    keep: Literal["8X"] | tuple[float, ...] = "8X"
    colour: Colour = Colour.RED
    note: str = ""


@dataclass(frozen=True, slots=True)
class Slotted:
    lr: float = 0.5

    def __post_init__(self) -> None:
        if self.lr > 1:
            raise UsageError("lr is above 1")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", "100", 100),
        ("steps", " 100 ", 100),
        ("lr", "1e-4", 1e-4),
        ("lr", 1, 1.0),
        ("nesterov", "true", True),
        ("cap", "none", None),
        ("cap", "3", 3.0),
        ("init", "intended", "intended"),
        ("widths", "1,2,3", (1, 2, 3)),
        ("widths", "[4]", (4,)),
        ("widths", [5, 6], (5, 6)),
        ("keep", "8X", "8X"),
        ("keep", "0.5,1", (0.5, 1.0)),
        ("keep", [0.5], (0.5,)),
        ("colour", "red", Colour.RED),
        ("note", "none", "none"),
    ],
)
def test_values(name: str, text: object, value: object) -> None:
    params = build_params(Params, {name: text}, "toy")
    assert isinstance(params, Params)
    assert getattr(params, name) == value
    assert type(getattr(params, name)) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", "none", "parameter toy.steps: input should be a valid integer"),
        ("steps", 1.5, "parameter toy.steps: input should be a valid integer"),
        ("lr", "-1", "parameter toy.lr: input should be greater than 0"),
        ("lr", "inf", "parameter toy.lr is inf"),
        ("lr", "nan", "toy.lr"),
        ("init", "other", "'released' or 'intended'"),
        ("widths", "1,x", "parameter toy.widths"),
        ("step", 1, "unknown parameter of toy 'step'; did you mean steps"),
        ("step", 1, "? valid: cap, colour"),
    ],
)
def test_wrong_names_and_values(name: str, value: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_params(Params, {name: value}, "toy")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults_slots_and_post_init() -> None:
    assert build_params(Params, {}, "toy") == Params()
    assert build_params(NoParams, {}, "toy") == NoParams()
    assert build_params(Slotted, {"lr": "0.1"}, "toy") == Slotted(0.1)
    with pytest.raises(UsageError, match="lr is above 1"):
        build_params(Slotted, {"lr": 2}, "toy")


def test_plain_data_and_back() -> None:
    params = Params(widths=(3,), cap=None)
    data: dict[str, Any] = json.loads(json.dumps(params_dict(params), allow_nan=False))
    assert data["widths"] == [3]
    assert data["colour"] == "red"
    assert build_params(Params, data, "toy") == params
