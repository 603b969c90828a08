"""Checks that what a plugin offers keeps the contract of `dfqbench.api`, before anything is spent on it."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

from dfqbench.api.errors import PluginError, UsageError
from dfqbench.api.method import Fidelity, Method, Quantizer, Requires
from dfqbench.grid.params import build_params
from dfqbench.plugins.offers import LoadedOffer, one_line

_METHOD_VARIABLES: Mapping[str, type] = {
    "title": str,
    "paper": str,
    "fidelity": Fidelity,
    "quantizer": str,
    "requires": Requires,
    "depends_on_bits": bool,
    "control": bool,
}
_QUANTIZER_VARIABLES: Mapping[str, type] = {"title": str, "recipes": Mapping, "default_recipe": str}


def checked_method(found: object, offer: LoadedOffer, quantizers: Iterable[str]) -> type[Method]:
    """Returns the class if it is a method that can be run.

    Args:
        found: what the offer's `load` string named.
        offer: the offer.
        quantizers: names of the known quantizers.

    Raises:
        PluginError: it breaks the contract; the message says where.
    """
    where = f"method '{offer.name}' ({offer.origin})"
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise PluginError(f"{where}: '{offer.load}' is not a subclass of dfqbench.api.Method")
    _check_class(found, offer, where, _METHOD_VARIABLES)
    name, _, recipe = found.quantizer.partition(":")
    known = sorted(quantizers)
    if name not in known or (":" in found.quantizer and not recipe):
        raise PluginError(f"{where}: quantizer '{found.quantizer}' is not known", f"valid: {', '.join(known)}")
    return found


def checked_quantizer(found: object, offer: LoadedOffer) -> type[Quantizer]:
    """Returns the class if it is a shared quantizer that can be run.

    Raises:
        PluginError: it breaks the contract; the message says where.
    """
    where = f"quantizer '{offer.name}' ({offer.origin})"
    if not (isinstance(found, type) and issubclass(found, Quantizer)):
        raise PluginError(f"{where}: '{offer.load}' is not a subclass of dfqbench.api.Quantizer")
    _check_class(found, offer, where, _QUANTIZER_VARIABLES)
    if found.default_recipe and found.default_recipe not in found.recipes:
        raise PluginError(f"{where}: default_recipe '{found.default_recipe}' is not among its recipes")
    return found


def _check_class(
    found: type[Method] | type[Quantizer], offer: LoadedOffer, where: str, variables: Mapping[str, type]
) -> None:
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise PluginError(f"{where}: {missing} is missing", "write it")
    for variable, kind in {"name": str, **variables}.items():
        value = getattr(found, variable, None)
        if not isinstance(value, kind):
            is_now = "missing" if value is None else f"a {type(value).__name__}"
            raise PluginError(f"{where}: class variable `{variable}` is {is_now}", f"set it to a {kind.__name__}")
    if found.name != offer.name:
        raise PluginError(f"{where}: the class calls itself '{found.name}'", "use the same name in the offer")
    _check_params(found.params_type, where)


def _check_params(params_type: Any, where: str) -> None:
    example = "@dataclass(frozen=True) class Params, with a default for every field"
    if not (isinstance(params_type, type) and dataclasses.is_dataclass(params_type)):
        raise PluginError(f"{where}: params_type {params_type!r} is not a dataclass", f"write it as {example}")
    if not params_type.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise PluginError(f"{where}: params_type {params_type.__name__} is not frozen", f"write it as {example}")
    for field in dataclasses.fields(params_type):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise PluginError(f"{where}: parameter '{field.name}' has no default", f"write it as {example}")
    try:
        defaults = dataclasses.asdict(params_type())
        json.dumps(defaults, allow_nan=False)
        build_params(params_type, defaults, "defaults")
    except UsageError as error:
        raise PluginError(f"{where}: {error.message}", "make default and annotation agree") from error
    except Exception as error:
        raise PluginError(f"{where}: the defaults are not plain data: {one_line(error)}", "use JSON types") from error
