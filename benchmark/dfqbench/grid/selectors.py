"""Selectors: what the command line changes of a grid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dfqbench.api.budget import budget_named
from dfqbench.api.errors import UsageError
from dfqbench.api.precision import Precision
from dfqbench.grid.choice import parse_methods
from dfqbench.grid.schema import ANY_TARGET, AUTO, Grid, flattened_settings
from dfqbench.quant.scheme import parse_scheme

MOST_SEEDS = 1000
"""A range of more seeds is taken for a slip."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What to change of a grid; None leaves the grid's own.

    Attributes:
        on: targets.
        models: models, for every target.
        methods: method choices, or `*`.
        schemes: labels.
        seeds: seeds.
        budget: a budget's name, or `auto`.
        limit: evaluation images.
        precision: a precision's name.
        settings: parameter values by `method.parameter`; added to the grid's.
    """

    on: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    schemes: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    budget: str | None = None
    limit: int | None = None
    precision: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def parse_selection(
    *,
    on: str | None = None,
    models: str | None = None,
    methods: str | None = None,
    bits: str | None = None,
    seeds: str | None = None,
    settings: Iterable[str] = (),
    budget: str | None = None,
    limit: int | None = None,
    exact: bool = False,
) -> Selection:
    """Reads the selectors as the command line gives them.

    Args:
        on: targets, `a,b`.
        models: models, `a,b`; a comma inside parentheses belongs to the model.
        methods: method choices, `zeroq,noise,zeroq+distill`.
        bits: scheme labels, `w4a4,w3a3@deploy`.
        seeds: `0,1,2` or `0-4`.
        settings: `method.parameter=value`, each.
        budget: a budget's name, or `auto`.
        limit: evaluation images.
        exact: whether the reference precision is asked for.

    Raises:
        UsageError: a value has another form. Methods, targets and parameters are looked up later, by those who know
            them.
    """
    if budget is not None and budget != AUTO:
        budget_named(budget)
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} leaves no image", "give a number from 1")
    return Selection(
        on=None if on is None else _names("--on", on, "cifar10,digits"),
        models=None if models is None else _names("--models", models, "torchvision:resnet18"),
        methods=None if methods is None else parse_methods(methods),
        schemes=None if bits is None else _names("--bits", bits, "w4a4,w3a3@deploy"),
        seeds=None if seeds is None else parse_seeds(seeds),
        budget=budget,
        limit=limit,
        precision=str(Precision.FLOAT32) if exact else None,
        settings=dict(_setting(text) for text in settings),
    )


def parse_seeds(text: str) -> tuple[int, ...]:
    """Reads `0,1,2`, `0-4`, or both mixed; doubles are dropped.

    Raises:
        UsageError: the text has another form.
    """
    seeds: list[int] = []
    for part in _names("--seeds", text, "0,1,2 or 0-4"):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        if match is None:
            raise UsageError(f"'{part}' is not a seed", "write --seeds 0,1,2 or --seeds 0-4")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < first + MOST_SEEDS:
            raise UsageError(f"'{part}' is not a range of seeds", f"write low-high, at most {MOST_SEEDS} seeds")
        seeds += range(first, last + 1)
    return tuple(dict.fromkeys(seeds))


def apply(grid: Grid, selection: Selection) -> Grid:
    """The grid with the selection's changes.

    Raises:
        UsageError: a scheme's label is wrong, or names a protocol that neither dfqbench nor the grid has.
    """
    changes: dict[str, Any] = {
        name: value
        for name in ("on", "methods", "schemes", "seeds", "budget", "limit", "precision")
        if (value := getattr(selection, name)) is not None
    }
    for label in changes.get("schemes", ()):
        parse_scheme(label, grid.protocol_table)
    if selection.models is not None:
        changes["models"] = {ANY_TARGET: selection.models}
    if selection.settings:
        changes["settings"] = {**grid.settings, **selection.settings}
    # Built anew rather than by `model_copy`: that would keep the cached schemes.
    return Grid.model_validate({**grid.model_dump(), **changes})


def _names(option: str, text: str, example: str) -> tuple[str, ...]:
    """Splits at commas outside brackets."""
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


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text} has no value", "write for example --set zeroq.iterations=100")
    try:
        flattened_settings({key.strip(): value})
    except ValueError as error:
        raise UsageError(f"--set {text}: {error}") from error
    return key.strip(), value
