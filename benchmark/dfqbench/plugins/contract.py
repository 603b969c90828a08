"""Checks that offered classes keep the contract of `dfqbench.api`, before they are used."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from dfqbench.api.errors import PluginError, UsageError
from dfqbench.api.method import Fidelity, Method, Quantizer, Requires
from dfqbench.plugins.offers import LoadedOffer, one_line
from dfqbench.plugins.params import build_params

Base = TypeVar("Base", Method, Quantizer)
_METHOD_VARIABLES: Mapping[str, type] = {
    "name": str,
    "title": str,
    "paper": str,
    "link": str,
    "fidelity": Fidelity,
    "quantizer": str,
    "requires": Requires,
    "depends_on_bits": bool,
    "control": bool,
}
_QUANTIZER_VARIABLES: Mapping[str, type] = {"name": str, "title": str, "recipes": Mapping, "default_recipe": str}


def checked_method(imported: object, offer: LoadedOffer, quantizers: Iterable[str]) -> type[Method]:
    """Return the imported class if it is a method that can be run.

    Args:
        imported: the class or other object that the offer's `load` string names.
        offer: the offer.
        quantizers: names of the known quantizers.

    Raises:
        PluginError: it breaks the contract; the message says where.
    """
    method_cls = _checked(imported, offer, Method, _METHOD_VARIABLES)  # type: ignore[type-abstract]
    name, colon, recipe = method_cls.quantizer.partition(":")
    known = sorted(quantizers)
    if name not in known or (colon and not recipe):
        where = f"method '{offer.name}' ({offer.origin})"
        raise PluginError(f"{where}: quantizer '{method_cls.quantizer}' is not known", f"valid: {', '.join(known)}")
    return method_cls


def checked_quantizer(imported: object, offer: LoadedOffer) -> type[Quantizer]:
    """Return the imported class if it is a shared quantizer that can be run; see `checked_method`."""
    quantizer_cls = _checked(imported, offer, Quantizer, _QUANTIZER_VARIABLES)  # type: ignore[type-abstract]
    default = quantizer_cls.default_recipe
    if default and default not in quantizer_cls.recipes:
        where = f"quantizer '{offer.name}' ({offer.origin})"
        raise PluginError(f"{where}: default_recipe '{default}' is not among its recipes")
    return quantizer_cls


def _checked(imported: object, offer: LoadedOffer, base: type[Base], variables: Mapping[str, type]) -> type[Base]:
    where = f"{base.__name__.lower()} '{offer.name}' ({offer.origin})"
    if not (isinstance(imported, type) and issubclass(imported, base)):
        raise PluginError(f"{where}: '{offer.load}' is not a subclass of dfqbench.api.{base.__name__}")
    if inspect.isabstract(imported):
        missing = ", ".join(sorted(getattr(imported, "__abstractmethods__", ())))
        raise PluginError(f"{where}: {missing} is missing", "write it")
    for variable, variable_type in variables.items():
        value = getattr(imported, variable, None)
        if not isinstance(value, variable_type):
            is_now = "missing" if value is None else f"a {type(value).__name__}"
            raise PluginError(
                f"{where}: class variable `{variable}` is {is_now}", f"set it to a {variable_type.__name__}"
            )
    if imported.name != offer.name:
        raise PluginError(f"{where}: the class calls itself '{imported.name}'", "use the same name in the offer")
    _check_params(imported.params_type, where)
    return imported


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
