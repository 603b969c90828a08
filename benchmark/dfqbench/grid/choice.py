"""Method choices: a method, and the quantizer that its source goes with."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dfqbench.api.errors import PluginError, UsageError, unknown_name
from dfqbench.api.method import Method, Quantizer

REAL = "real"
"""The host's own control: images of the target's training split; no plugin may take its name."""
FLOOR = "noise"
"""The control that `*` includes."""
EVERY = "*"

_CHOICE = re.compile(r"(?P<method>[a-z0-9][a-z0-9_-]*)(?:\+(?P<quantizer>[a-z0-9_-]+)(?::(?P<recipe>[a-z0-9_-]+))?)?")


class MethodOffers(Protocol):
    """The methods and quantizers that plugins offer; `Plugins` is one."""

    @property
    def methods(self) -> Collection[str]:
        """Names of the methods."""
        ...

    @property
    def quantizers(self) -> Collection[str]:
        """Names of the shared quantizers."""
        ...

    @property
    def broken_names(self) -> Collection[str]:
        """Names of the plugins that did not load."""
        ...

    def method_class(self, name: str) -> type[Method]:
        """Import the class of a method."""
        ...

    def quantizer_class(self, name: str) -> type[Quantizer]:
        """Import the class of a shared quantizer."""
        ...


@dataclass(frozen=True, slots=True)
class MethodChoice:
    """A row of the table.

    Attributes:
        method: a method's name, or `real`.
        quantizer: the quantizer of a cross such as `zeroq+distill`; None: the method's own `quantize`.
        recipe: the cross's recipe; None where the quantizer has none.
    """

    method: str
    quantizer: str | None = None
    recipe: str | None = None

    @property
    def label(self) -> str:
        """For example `zeroq` or `zeroq+distill:intraq`."""
        cross = f"+{self.quantizer}" if self.quantizer else ""
        return f"{self.method}{cross}{f':{self.recipe}' if self.recipe else ''}"


def parse_method(text: str) -> MethodChoice:
    """Reads `zeroq`, `zeroq+distill` or `gdfq+distill:gdfq`; names are not looked up.

    Raises:
        UsageError: the text has another form.
    """
    match = _CHOICE.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(
            f"'{text}' is not a method choice", "write method, method+quantizer or method+quantizer:recipe"
        )
    return MethodChoice(match["method"], match["quantizer"], match["recipe"])


def parse_methods(text: str) -> tuple[str, ...]:
    """Splits a list such as `zeroq,noise,zeroq+distill`; `*` stands for every offered method.

    Raises:
        UsageError: an item has another form, or there is none.
    """
    items = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    if not items:
        raise UsageError("no method is named", "write for example --methods zeroq,noise")
    for item in items:
        if item != EVERY:
            parse_method(item)
    return items


def resolve_methods(names: Iterable[str], plugins: MethodOffers) -> list[MethodChoice]:
    """Looks method choices up, fills in recipes, and drops doubles.

    `*` becomes every offered method that is no control, broken ones included (each is a row with its reason), and
    `noise` where it is offered; never `real`. A cross that only writes out a method's own quantizer is that method.

    Args:
        names: as `parse_methods` gives them.
        plugins: what is offered.

    Raises:
        UsageError: a method, quantizer or recipe is unknown.
    """
    choices: dict[MethodChoice, None] = {}
    for name in names:
        found = _every(plugins) if name == EVERY else [_looked_up(parse_method(name), plugins)]
        choices.update(dict.fromkeys(found))
    return list(choices)


def _every(plugins: MethodOffers) -> list[MethodChoice]:
    competitors = [MethodChoice(name) for name in plugins.methods if not _is_control(name, plugins)]
    broken = [MethodChoice(name) for name in plugins.broken_names]
    floor = [MethodChoice(FLOOR)] if FLOOR in plugins.methods else []
    return [*competitors, *broken, *floor]


def _is_control(name: str, plugins: MethodOffers) -> bool:
    try:
        return plugins.method_class(name).control
    except PluginError:
        # Not known to be a control: it stays in the sweep as a row that says what is wrong.
        return name == FLOOR


def _looked_up(choice: MethodChoice, plugins: MethodOffers) -> MethodChoice:
    valid = (*plugins.methods, *plugins.broken_names, REAL)
    if choice.method not in valid:
        raise unknown_name("method", choice.method, valid)
    if choice.quantizer is None:
        return choice
    if choice.quantizer not in plugins.quantizers:
        raise unknown_name("quantizer", choice.quantizer, plugins.quantizers)
    full = MethodChoice(choice.method, choice.quantizer, _recipe(choice, plugins))
    return MethodChoice(choice.method) if own_quantizer(choice.method, plugins) == full else full


def own_quantizer(method: str, plugins: MethodOffers) -> MethodChoice | None:
    """The quantizer and recipe that a method names for itself, written out; None if the method does not load."""
    try:
        named = plugins.method_class(method).quantizer
        name, _, recipe = named.partition(":")
        choice = MethodChoice(method, name, recipe or None)
        return MethodChoice(method, name, _recipe(choice, plugins))
    except (PluginError, UsageError):
        return None


def _recipe(choice: MethodChoice, plugins: MethodOffers) -> str | None:
    """The choice's recipe, checked; the quantizer's default where none is written out."""
    quantizer = plugins.quantizer_class(choice.quantizer or "")
    recipes: Sequence[str] = tuple(quantizer.recipes)
    if choice.recipe is None:
        return quantizer.default_recipe or (recipes[0] if recipes else None)
    if choice.recipe not in recipes:
        raise unknown_name(f"recipe of {choice.quantizer}", choice.recipe, recipes)
    return choice.recipe
