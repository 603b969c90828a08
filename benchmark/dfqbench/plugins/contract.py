"""Checks that offered classes keep the contract of `dfqbench.api`, before they are used."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

from dfqbench.api.errors import PluginError, UsageError
from dfqbench.api.method import Fidelity, Method, Quantizer, Requires
from dfqbench.plugins.offers import LoadedOffer, one_line
from dfqbench.plugins.params import build_params

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


def checked_method(imported: object, offer: LoadedOffer, quantizers: Iterable[str]) -> type[Method]:
    """Return the imported class if it is a method that can be run.

    Args:
        imported: the class or other object that the offer's `load` string names.
        offer: the offer.
        quantizers: names of the known quantizers.

    Raises:
        PluginError: it breaks the contract; the message says where.
    """
    where = f"method '{offer.name}' ({offer.origin})"
    if not (isinstance(imported, type) and issubclass(imported, Method)):
        raise PluginError(f"{where}: '{offer.load}' is not a subclass of dfqbench.api.Method")
    _check_class(imported, offer, where, _METHOD_VARIABLES)
    name, colon, recipe = imported.quantizer.partition(":")
    known = sorted(quantizers)
    if name not in known or (colon and not recipe):
        raise PluginError(f"{where}: quantizer '{imported.quantizer}' is not known", f"valid: {', '.join(known)}")
    return imported


def checked_quantizer(imported: object, offer: LoadedOffer) -> type[Quantizer]:
    """Return the imported class if it is a shared quantizer that can be run.

    Raises:
        PluginError: it breaks the contract; the message says where.
    """
    where = f"quantizer '{offer.name}' ({offer.origin})"
    if not (isinstance(imported, type) and issubclass(imported, Quantizer)):
        raise PluginError(f"{where}: '{offer.load}' is not a subclass of dfqbench.api.Quantizer")
    _check_class(imported, offer, where, _QUANTIZER_VARIABLES)
    if imported.default_recipe and imported.default_recipe not in imported.recipes:
        raise PluginError(f"{where}: default_recipe '{imported.default_recipe}' is not among its recipes")
    return imported


def _check_class(
    plugin_cls: type[Method] | type[Quantizer], offer: LoadedOffer, where: str, variables: Mapping[str, type]
) -> None:
    if inspect.isabstract(plugin_cls):
        missing = ", ".join(sorted(getattr(plugin_cls, "__abstractmethods__", ())))
        raise PluginError(f"{where}: {missing} is missing", "write it")
    for variable, variable_type in {"name": str, **variables}.items():
        value = getattr(plugin_cls, variable, None)
        if not isinstance(value, variable_type):
            is_now = "missing" if value is None else f"a {type(value).__name__}"
            raise PluginError(
                f"{where}: class variable `{variable}` is {is_now}", f"set it to a {variable_type.__name__}"
            )
    if plugin_cls.name != offer.name:
        raise PluginError(f"{where}: the class calls itself '{plugin_cls.name}'", "use the same name in the offer")
    _check_params(plugin_cls.params_type, where)


def _check_params(params_type: Any, where: str) -> None:
    hint = "write it as @dataclass(frozen=True) class Params, with a default for every field"
    if not (isinstance(params_type, type) and dataclasses.is_dataclass(params_type)):
        raise PluginError(f"{where}: params_type {params_type!r} is not a dataclass", hint)
    if not params_type.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise PluginError(f"{where}: params_type {params_type.__name__} is not frozen", hint)
    for field in dataclasses.fields(params_type):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise PluginError(f"{where}: parameter '{field.name}' has no default", hint)
    try:
        defaults = dataclasses.asdict(params_type())
        json.dumps(defaults, allow_nan=False)
        build_params(params_type, defaults, "defaults")
    except UsageError as error:
        raise PluginError(f"{where}: {error.message}", "make default and annotation agree") from error
    except Exception as error:
        raise PluginError(f"{where}: the defaults are not plain data: {one_line(error)}", "use JSON types") from error
