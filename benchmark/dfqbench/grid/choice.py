"""Method choices: a method, and the quantizer that its source is combined with."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from dfqbench.api.errors import PluginError, UsageError, unknown_name
from dfqbench.api.method import Method
from dfqbench.plugins import Plugins
from dfqbench.plugins.registry import REAL

NOISE = "noise"
"""The only control that `*` includes."""
NO_IMAGES = "none"
"""The source without images; `*` leaves it out, since only some quantizers can use it."""
EVERY = "*"
DISTILL = "distill"
"""The quantizer of a recipe without one."""
CONTROLS = (NOISE, REAL)
"""The controls that `all` stands for."""

_NAME = "[A-Za-z0-9][A-Za-z0-9_-]*"
_RECIPE = re.compile(rf"(?:(?P<quantizer>{_NAME}):)?(?P<recipe>{_NAME})")
_CHOICE = re.compile(rf"(?P<method>{_NAME})(?:\+(?P<quantizer>{_NAME})(?::(?P<recipe>{_NAME}))?)?")


@dataclass(frozen=True, slots=True)
class MethodChoice:
    """A row of the table.

    Attributes:
        method: a method's name, or `real`.
        quantizer: the quantizer of a cross such as `zeroq+distill`; None: the method's own `quantize`.
        recipe: the cross's recipe; None if the quantizer has none.
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
    """Parse `zeroq`, `zeroq+distill` or `gdfq+distill:gdfq`; whether the names exist is not checked."""
    match = _CHOICE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"'{text}' is not a method choice", "write method, method+quantizer or method+quantizer:recipe"
        )
    return MethodChoice(*(part and part.lower() for part in match.group("method", "quantizer", "recipe")))


def parse_methods(text: str) -> tuple[str, ...]:
    """Split a list such as `zeroq,noise,zeroq+distill`; `*` stands for every offered method."""
    items = [part.strip() for part in text.split(",") if part.strip()]
    if not items:
        raise UsageError("no method is named", "write for example --methods zeroq,noise")
    return tuple(dict.fromkeys(EVERY if item == EVERY else parse_method(item).label for item in items))


def parse_recipe(text: str) -> tuple[str, str]:
    """Parse `gdfq` or `distill:gdfq` into quantizer and recipe; whether the names exist is not checked."""
    match = _RECIPE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"'{text}' is not a recipe", "write recipe or quantizer:recipe, for example distill:gdfq")
    return (match["quantizer"] or DISTILL).lower(), match["recipe"].lower()


def resolve_methods(
    names: Iterable[str],
    plugins: Plugins,
    controls: str | None = None,
    *,
    recipe: str | None = None,
    absent: Collection[str] = (),
) -> list[MethodChoice]:
    """Return the method choices of a grid, with recipes filled in and without duplicates.

    `*` becomes every offered method that is no control, broken plugins included (each is a row with its reason), and
    `noise` if it is offered; never `real` or `none`. A cross that only writes out a method's own
    quantizer is that method.

    Args:
        names: choices in the form that `parse_methods` returns.
        plugins: the loaded plugins.
        controls: controls to add under every quantizer and recipe that the choices use, `noise,fractal` or `all`
            (`noise` and `real`); `none` leaves every control out; None: as named.
        recipe: recipe of every choice, controls included, as `parse_recipe` takes it; None: as named.
        absent: methods that may be named although no plugin offers them.

    Raises:
        UsageError: a method, control, quantizer or recipe is unknown, nothing but controls is named and `controls` is
            `none`, or there is a `recipe` and a method that names another one.
    """
    choices: dict[MethodChoice, None] = {}
    for name in names:
        named = _every(plugins) if name == EVERY else [parse_method(name)]
        if recipe is not None:
            named = [_under(recipe, choice, plugins) for choice in named]
        choices |= dict.fromkeys(_resolved(choice, plugins, absent) for choice in named)
    if controls is not None and controls != "none":
        used = dict.fromkeys(
            choice if choice.quantizer else _own_quantizer(choice.method, plugins) for choice in choices
        )
        choices |= dict.fromkeys(
            _resolved(MethodChoice(control, quantized.quantizer, quantized.recipe), plugins)
            for control in _controls(controls, plugins)
            for quantized in used
            if quantized is not None
        )
    elif controls == "none":
        choices = {choice: None for choice in choices if not _is_control(choice.method, plugins)}
        if not choices:
            raise UsageError("without its controls the grid has no method", "name one with --methods")
    return list(choices)


def _every(plugins: Plugins) -> list[MethodChoice]:
    competitors = [name for name in plugins.methods if name != NO_IMAGES and not _is_control(name, plugins)]
    noise = [NOISE] if NOISE in plugins.methods else []
    return [MethodChoice(name) for name in (*competitors, *plugins.broken_names, *noise)]


def _controls(text: str, plugins: Plugins) -> tuple[str, ...]:
    """Return the controls that a grid adds."""
    names = CONTROLS if text == "all" else tuple(part.strip().lower() for part in text.split(","))
    for name in names:
        if not _is_control(name, plugins):
            raise unknown_name("control", name, offered_controls(plugins))
    return names


def _under(recipe: str, choice: MethodChoice, plugins: Plugins) -> MethodChoice:
    """Return the choice under the one recipe of a grid; a control follows it from another recipe of its quantizer."""
    quantizer, name = parse_recipe(recipe)
    other_recipe = choice.recipe not in {None, name} and not _is_control(choice.method, plugins)
    if choice.quantizer is not None and (choice.quantizer != quantizer or other_recipe):
        raise UsageError(
            f"'{choice.label}' is a cross, and the recipe of the whole grid is '{quantizer}:{name}'",
            f"write {choice.method} alone, or leave the recipe of the grid out",
        )
    return MethodChoice(choice.method, quantizer, name)


def offered_controls(plugins: Plugins) -> list[str]:
    """Return the values of a grid's `controls`: each control, `all` and `none`."""
    return ["all", "none", *(name for name in (*plugins.methods, REAL) if _is_control(name, plugins))]


def has_own_quantize(method_cls: type[Method]) -> bool:
    """Check whether a method has a `quantize` of its own, which may use the shared quantizer or not."""
    return method_cls.quantize is not Method.quantize


def _is_control(name: str, plugins: Plugins) -> bool:
    if name == REAL:
        return True
    try:
        return plugins.method_class(name).control
    except (PluginError, UsageError):
        # A class that does not load, or is not offered, stays in the run, as a row with the reason.
        return name == NOISE


def is_offered(method: str, plugins: Plugins) -> bool:
    """Check that a plugin or the host offers a method, broken or not."""
    return method in (*plugins.methods, *plugins.broken_names, REAL)


def _resolved(choice: MethodChoice, plugins: Plugins, absent: Collection[str] = ()) -> MethodChoice:
    valid = (*plugins.methods, *plugins.broken_names, REAL, *absent)
    if choice.method not in valid:
        raise unknown_name("method", choice.method, valid)
    if choice.quantizer is None:
        return choice
    if choice.quantizer not in plugins.quantizers:
        raise unknown_name("quantizer", choice.quantizer, plugins.quantizers)
    full = _with_recipe(choice.method, choice.quantizer, choice.recipe, plugins)
    if _own_quantizer(choice.method, plugins) != full or cross_images(full, plugins):
        return full
    own = choice.method != REAL and has_own_quantize(plugins.method_class(choice.method))
    return full if own else MethodChoice(choice.method)


def cross_images(choice: MethodChoice, plugins: Plugins) -> dict[str, int]:
    """Return `{"images": N}` where a cross makes another number of images than the method does by itself, else `{}`.

    Crosses with one quantizer have equally many images of every fixed source (`Quantizer.cross_images`).
    """
    if choice.quantizer is None or choice.method == REAL:
        return {}
    images = plugins.quantizer_class(choice.quantizer).cross_images
    own = {field.name: field.default for field in dataclasses.fields(plugins.method_class(choice.method).params_type)}
    return {"images": images} if images is not None and own.get("images", images) != images else {}


def _own_quantizer(method: str, plugins: Plugins) -> MethodChoice | None:
    """Return a method's default quantizer and recipe, written out; None if the method does not load."""
    try:
        own = "calibrate" if method == REAL else plugins.method_class(method).quantizer
        quantizer, _, recipe = own.partition(":")
        return _with_recipe(method, quantizer, recipe or None, plugins)
    except (PluginError, UsageError):
        return None


def _with_recipe(method: str, quantizer: str, recipe: str | None, plugins: Plugins) -> MethodChoice:
    """Return the choice with its recipe checked, or with the quantizer's default."""
    quantizer_cls = plugins.quantizer_class(quantizer)
    recipes = tuple(quantizer_cls.recipes)
    if recipe is None:
        recipe = quantizer_cls.default_recipe or (recipes[0] if recipes else None)
    elif recipe not in recipes:
        raise unknown_name(f"recipe of {quantizer}", recipe, recipes)
    return MethodChoice(method, quantizer, recipe)
