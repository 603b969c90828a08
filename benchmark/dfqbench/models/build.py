"""Building a teacher: reference to network, with weights, ready to be asked. Building never downloads."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from dfqbench.api.errors import DfqError, InputError, PluginError, Unavailable, first_line, unknown_name
from dfqbench.isolation import import_local, local_module_name, rolled_back
from dfqbench.models import cifar, digits
from dfqbench.models.identity import file_sha256
from dfqbench.models.reference import CODE_SCHEME, Reference, in_libraries, parse_reference
from dfqbench.models.spec import ModelSpec
from dfqbench.models.weights import load_weights

_OWN = {"cifar": cifar.ARCHITECTURES, "digits": digits.ARCHITECTURES}
_FETCHING = ("pretrained", "weights", "weights_backbone", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")
"""Arguments by which the model libraries download or read files; dfqbench loads weights itself."""
_HELPERS = "pytorchcv.models.common"
"""Helpers of pytorchcv among its networks."""


def build_teacher(
    model: ModelSpec, device: torch.device | str = "cpu", families: Mapping[str, str] | None = None
) -> nn.Module:
    """Builds a network in eval mode: float32, channels-last, parameters frozen.

    Random weights are drawn on the CPU from the model's seed; torch's global generator is left as it was.

    Args:
        model: the model.
        device: where to put it.
        families: families that plugins offer, `package.module:callable` or `/path/file.py:callable` by name; called
            with (name, **kwargs).

    Raises:
        InputError: unknown architecture, wrong arguments or weights, or something that is not a network of the card.
        Unavailable: an optional library is not installed, or a manifest names code that it may not.
        PluginError: a plugin's family does not load.
    """
    families = families or {}
    reference = parse_reference(model.ref, families)
    if model.weights is not None and model.sha256 is not None and file_sha256(model.weights) != model.sha256:
        raise InputError(f"{model.weights} is not the file that was fetched", f"run: dfqbench fetch {model.name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(model.random_seed or 0)
        module = _construct(model, reference, families)
    if model.weights is not None:
        load_weights(module, model.weights)
    module = module.float().eval().requires_grad_(False).to(device)
    module = module.to(memory_format=torch.channels_last)
    _check_outputs(model, module, torch.device(device))
    return module


def _construct(model: ModelSpec, reference: Reference, families: Mapping[str, str]) -> nn.Module:
    builder = _builder(model, reference, families)
    try:
        module = builder(*model.args, **model.kwargs)
    except (DfqError, KeyboardInterrupt):
        raise
    except Exception as error:  # foreign code: whatever it raises is the reason
        raise InputError(
            f"{reference.bare} cannot be built: {type(error).__name__}: {first_line(error)}", "check its arguments"
        ) from error
    if not isinstance(module, nn.Module):
        raise InputError(
            f"{reference.bare} returned {type(module).__name__}, not a torch.nn.Module", "name a callable that does"
        )
    return module


def _builder(model: ModelSpec, reference: Reference, families: Mapping[str, str]) -> Callable[..., Any]:
    card = model.card
    channels = card.input_size[0]
    scheme, name = reference.scheme, reference.name
    if scheme in _OWN:
        known = _OWN[scheme]
        if name not in known:
            raise unknown_name(f"{scheme} model", name, known, error=InputError)
        inputs = {} if scheme == "digits" else {"in_channels": channels}
        return functools.partial(_call, known[name], {"classes": card.classes, **inputs})
    if scheme == CODE_SCHEME:
        return _callable(model, reference)
    if scheme in families:
        return functools.partial(_family(scheme, families[scheme]), name)
    if not model.trusted:
        _refuse_fetching(model, model.kwargs)
    defaults = {"num_classes": card.classes}
    if channels != 3:
        defaults["in_chans" if scheme == "timm" else "in_channels"] = channels
    return functools.partial(_call, library_builder(scheme, name), defaults)


def _call(function: Callable[..., Any], defaults: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Calls with defaults for what is not given by position or by name."""
    return function(*args, **{**defaults, **kwargs})


def library_builder(library: str, name: str) -> Callable[..., Any]:
    """The function of a model library that builds a network without weights.

    Args:
        library: `torchvision`, `timm` or `pytorchcv`.
        name: name in the library.

    Raises:
        InputError: the library has no such network.
        Unavailable: the library is not installed.
    """
    return {"torchvision": _torchvision, "timm": _timm, "pytorchcv": _pytorchcv}[library](name)


def _torchvision(name: str) -> Callable[..., Any]:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown_name("torchvision model", name, near_names(name, known), error=InputError)
    return functools.partial(torchvision.models.get_model, name, weights=None)


def _timm(name: str) -> Callable[..., Any]:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise unknown_name("timm model", name, near_names(name, timm.list_models()), error=InputError)
    return functools.partial(timm.create_model, name, pretrained=False)


def _pytorchcv(name: str) -> Callable[..., Any]:
    try:
        provider = importlib.import_module("pytorchcv.model_provider")
    except ImportError as error:
        raise Unavailable("pytorchcv is not installed", "pip install 'dfqbench[pytorchcv]'") from error
    known = list(provider._models)
    if name not in known:
        raise unknown_name("pytorchcv model", name, near_names(name, known), error=InputError)
    return functools.partial(provider.get_model, name, pretrained=False)


def near_names(name: str, known: list[str]) -> list[str]:
    """A few names to show of the thousand that a library has."""
    import difflib

    return difflib.get_close_matches(name, known, n=8, cutoff=0.3)


def _family(scheme: str, load: str) -> Callable[..., Any]:
    module, _, attribute = load.rpartition(":")
    try:
        home = import_local(Path(module)) if module.endswith(".py") else importlib.import_module(module)
        found = getattr(home, attribute)
    except Exception as error:  # a plugin's import may raise anything
        raise PluginError(
            f"model family '{scheme}' does not load from {load}: {first_line(error)}", "repair or remove the plugin"
        ) from error
    if not callable(found):
        raise PluginError(f"model family '{scheme}': {load} is not callable", "repair or remove the plugin")
    return found  # type: ignore[no-any-return]


def _callable(model: ModelSpec, reference: Reference) -> Callable[..., Any]:
    if not model.trusted and (reference.is_file or not _defines_networks(reference.name)):
        raise Unavailable(f"a manifest may not name code such as {model.ref}", "name it on the command line instead")
    module = _file_module(Path(reference.name)) if reference.is_file else _module(reference)
    found = getattr(module, reference.function, None)
    if not callable(found):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise unknown_name(
            f"callable in {reference.name}", reference.function, near_names(reference.function, names), error=InputError
        )
    if not model.trusted:
        if not _defines_networks(str(getattr(found, "__module__", ""))):
            raise Unavailable(f"{model.ref} is code of another package", "name it on the command line instead")
        _refuse_fetching(model, _bound(found, model))
    return found  # type: ignore[no-any-return]


def _defines_networks(module: str) -> bool:
    """Whether a module defines networks: not the libraries' private helpers, which download and write files."""
    if any(part.startswith("_") for part in module.split(".")) or module.startswith(_HELPERS):
        return False
    return in_libraries(module)


def _bound(function: Callable[..., Any], model: ModelSpec) -> dict[str, Any]:
    """The arguments of a call by name, however they are given."""
    try:
        arguments = inspect.signature(function).bind(*model.args, **model.kwargs).arguments
    except TypeError as error:
        raise InputError(f"{model.ref}: {error}", "correct args and kwargs in the manifest") from error
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat


def _refuse_fetching(model: ModelSpec, arguments: Mapping[str, Any]) -> None:
    for name in _FETCHING:
        if arguments.get(name):
            raise InputError(
                f"model '{model.name}': a manifest may not pass {name}", 'name the file with weights = "..." instead'
            )


def _module(reference: Reference) -> ModuleType:
    package = reference.name.partition(".")[0]
    try:
        return importlib.import_module(reference.name)
    except ModuleNotFoundError as error:
        if package == "pytorchcv" and error.name == package:
            raise Unavailable("pytorchcv is not installed", "pip install 'dfqbench[pytorchcv]'") from error
        raise InputError(f"there is no module {error.name}", f"correct the reference {reference.bare}") from error
    except Exception as error:  # the user's module may raise anything
        raise InputError(f"{reference.name} does not import: {first_line(error)}", "correct the module") from error


def _file_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"there is no Python file {path}", "correct the path in the reference")
    try:
        with rolled_back(local_module_name(path)):
            return import_local(path)
    except Exception as error:  # the user's file may raise anything
        raise InputError(
            f"{path} does not import: {type(error).__name__}: {first_line(error)}", "correct it"
        ) from error


def _check_outputs(model: ModelSpec, module: nn.Module, device: torch.device) -> None:
    """One black image: a network that does not fit its card is found before hours are spent on it."""
    size = model.card.input_size
    image = torch.zeros(1, *size, device=device).contiguous(memory_format=torch.channels_last)
    shape = "x".join(str(number) for number in size)
    try:
        with torch.inference_mode():
            logits = module(image)
    except Exception as error:  # whatever a foreign network raises on the wrong shape
        raise InputError(
            f"{model.name} does not take {shape} images: {first_line(error)}", "correct input_size"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, model.card.classes):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(
            f"{model.name} gives {got} for one {shape} image, not (1, {model.card.classes})",
            "correct the number of classes in the card or in the arguments",
        )
