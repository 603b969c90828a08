"""Selectors: options of the command line that change a grid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from dfqbench.api.budget import budget_named
from dfqbench.api.errors import UsageError
from dfqbench.api.precision import Precision
from dfqbench.grid.choice import parse_methods, parse_recipe
from dfqbench.grid.schema import ANY_TARGET, AUTO, Grid, flattened_settings
from dfqbench.plugins.params import first_problem
from dfqbench.quant.mixed import Mixed
from dfqbench.quant.scheme import parse_scheme

MOST_SEEDS = 1000
"""A longer range of seeds is an error."""


def parse_selection(
    *,
    on: str | None = None,
    models: str | None = None,
    methods: str | None = None,
    controls: str | None = None,
    recipe: str | None = None,
    bits: str | None = None,
    mixed: str | None = None,
    seeds: str | None = None,
    settings: Iterable[str] = (),
    budget: str | None = None,
    limit: int | None = None,
    exact: bool = False,
) -> dict[str, Any]:
    """Parse the selectors of the command line.

    Args:
        on: targets, `a,b`.
        models: models for every target, `a,b`; a comma inside parentheses belongs to the model.
        methods: method choices, `zeroq,noise,zeroq+distill`.
        controls: `all`, `none` or `noise,fractal`; see `resolve_methods`.
        recipe: `gdfq` or `distill:gdfq`; see `resolve_methods`.
        bits: scheme labels, `w4a4,w3a3@deploy`.
        mixed: a budget of mixed precision, `size=4bit`.
        seeds: `0,1,2` or `0-4`.
        settings: `method.parameter=value`, each.
        budget: a budget's name, or `auto`.
        limit: evaluation images.
        exact: whether to use the reference precision.

    Returns:
        The fields of the grid to change, for `apply`; `settings` is added to the grid's.

    Raises:
        UsageError: a value has another form. Whether methods, targets and parameters exist is checked later.
    """
    if budget is not None and budget != AUTO:
        budget_named(budget)
    if recipe is not None:
        parse_recipe(recipe)
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} leaves no image", "give a number from 1")
    if mixed is not None:
        Mixed(mixed)
    changes = {
        "on": None if on is None else _names("--on", on, "cifar10,digits"),
        "models": None if models is None else {ANY_TARGET: _names("--models", models, "torchvision:resnet18")},
        "methods": None if methods is None else parse_methods(methods),
        "controls": controls,
        "recipe": recipe,
        "schemes": None if bits is None else _names("--bits", bits, "w4a4,w3a3@deploy"),
        "mixed": mixed,
        "seeds": None if seeds is None else parse_seeds(seeds),
        "budget": budget,
        "limit": limit,
        "precision": str(Precision.FLOAT32) if exact else None,
        "settings": _settings(settings),
    }
    return {field: value for field, value in changes.items() if value is not None}


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse `0,1,2`, `0-4`, or a mixture; duplicates are dropped."""
    seeds: list[int] = []
    for part in _names("--seeds", text, "0,1,2 or 0-4"):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
        if match is None:
            raise UsageError(f"'{part}' is not a seed", "write --seeds 0,1,2 or --seeds 0-4")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < first + MOST_SEEDS:
            raise UsageError(f"'{part}' is not a range of seeds", f"write low-high, at most {MOST_SEEDS} seeds")
        seeds += range(first, last + 1)
    return tuple(dict.fromkeys(seeds))


def apply(grid: Grid, selection: Mapping[str, Any]) -> Grid:
    """Return the grid with the changes of `parse_selection`.

    Raises:
        UsageError: a scheme's label is wrong, names a protocol that is neither built in nor the grid's, or a budget of
            mixed precision does not fit it or its parameters.
    """
    for label in selection.get("schemes", ()):
        parse_scheme(label, grid.protocol_table)
    settings = {**grid.settings, **selection.get("settings", {})}
    # Not `model_copy`: that would keep the cached schemes.
    try:
        return Grid.model_validate({**grid.model_dump(), **selection, "settings": settings})
    except ValidationError as error:
        raise UsageError(first_problem(error)[1].removeprefix("value error, ")) from error


def _names(option: str, text: str, example: str) -> tuple[str, ...]:
    """Split at commas outside brackets."""
    parts = [""]
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    names = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not names:
        raise UsageError(f"{option} names nothing", f"write for example {option} {example}")
    return names


def _settings(texts: Iterable[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for key, value in map(_setting, texts):
        if values.setdefault(key, value) != value:
            raise UsageError(f"--set {key} is given as {values[key]} and as {value}", "give it once")
    return values


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text} has no value", "write for example --set zeroq.iterations=100")
    try:
        flattened_settings({key.strip(): value})
    except ValueError as error:
        raise UsageError(f"--set {text}: {error}") from error
    return key.strip(), value
