"""Build a teacher from its reference and weights. Nothing is downloaded."""

from __future__ import annotations

import difflib
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
from dfqbench.isolation import import_local, local_module_name, rollback_imports
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
    """Build a network in eval mode: float32, channels-last, parameters frozen.

    Random weights are drawn on the CPU from the model's seed; torch's global generator keeps its state.

    Args:
        model: the model.
        device: where to put it.
        families: families that plugins offer, `package.module:callable` or `/path/file.py:callable` by name; called
            with (name, **kwargs), and with `classes` and `in_channels` of the card where they have such parameters.

    Raises:
        InputError: unknown architecture, wrong arguments or weights, or the network does not fit its card.
        Unavailable: an optional library is not installed, or a manifest names code that it may not.
        PluginError: a plugin's family does not load.
    """
    families = families or {}
    reference = parse_reference(model.ref, families)
    if model.weights is not None and model.sha256 is not None and file_sha256(model.weights) != model.sha256:
        raise InputError(f"{model.weights} is not the file that was fetched", f"run: dfqbench fetch {model.name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(model.random_seed or 0)
        builder, defaults = _builder(model, reference, families)
        try:
            module = builder(*model.args, **{**defaults, **model.kwargs})
        except DfqError:
            raise
        except Exception as error:  # code of a library or a user may raise anything
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{reference.bare} cannot be built: {reason}", "check its arguments") from error
    if not isinstance(module, nn.Module):
        got = type(module).__name__
        raise InputError(f"{reference.bare} returned {got}, not a torch.nn.Module", "name a callable that does")
    if model.weights is not None:
        load_weights(module, model.weights)
    module = module.float().eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    _check_outputs(model, module, torch.device(device))
    return module


def _builder(
    model: ModelSpec, reference: Reference, families: Mapping[str, str]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the function that builds a network, and its default arguments."""
    card = model.card
    channels = card.input_size[0]
    scheme, name = reference.scheme, reference.name
    if scheme in _OWN:
        return _OWN[scheme][name], {"classes": card.classes} | ({"in_channels": channels} if scheme == "cifar" else {})
    if scheme == CODE_SCHEME:
        return _callable(model, reference), {}
    if scheme in families:
        builder = functools.partial(_family(scheme, families[scheme]), name)
        return builder, _accepted(builder, len(model.args), {"classes": card.classes, "in_channels": channels})
    if not model.trusted:
        _refuse_fetching(model, model.kwargs)
    if scheme == "torchvision" and channels != 3:
        raise Unavailable(f"{reference.bare} takes images of 3 channels, not {channels}", "name another network")
    defaults = {"num_classes": card.classes}
    if channels != 3:
        defaults["in_chans" if scheme == "timm" else "in_channels"] = channels
    return library_builder(scheme, name), defaults


def library_builder(library: str, name: str) -> Callable[..., Any]:
    """Return the function of a model library that builds a network without weights.

    Args:
        library: `torchvision`, `timm` or `pytorchcv`.
        name: name in the library.

    Raises:
        InputError: the library has no such network.
        Unavailable: the library is not installed.
    """
    build: Callable[..., Any]
    if library == "torchvision":
        import torchvision

        names = torchvision.models.list_models(module=torchvision.models)
        exists = name in names
        build = functools.partial(torchvision.models.get_model, name, weights=None)
    elif library == "timm":
        import timm

        names = timm.list_models()
        exists = timm.is_model(name.partition(".")[0])
        build = functools.partial(timm.create_model, name, pretrained=False)
    else:
        provider = _imported("pytorchcv.model_provider")
        names = list(provider._models)
        exists = name in names
        build = functools.partial(provider.get_model, name, pretrained=False)
    if not exists:
        raise unknown_name(f"{library} model", name, near_names(name, names), error=InputError)
    return build


def near_names(name: str, names: list[str]) -> list[str]:
    """Return the few of many names that are most like the given one."""
    return difflib.get_close_matches(name, names, 8, 0.3) or difflib.get_close_matches(name, names, 8, 0.0)


def _family(scheme: str, load: str) -> Callable[..., Any]:
    module, _, attribute = load.rpartition(":")
    try:
        home = import_local(Path(module)) if module.endswith(".py") else importlib.import_module(module)
        function = getattr(home, attribute)
    except Exception as error:  # a plugin's import may raise anything
        raise PluginError(
            f"model family '{scheme}' does not load from {load}: {first_line(error)}", "repair or remove the plugin"
        ) from error
    if not callable(function):
        raise PluginError(f"model family '{scheme}': {load} is not callable", "repair or remove the plugin")
    return function  # type: ignore[no-any-return]


def _accepted(builder: Callable[..., Any], given: int, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values for which a builder has parameters, beyond the `given` positional ones."""
    try:
        parameters = list(inspect.signature(builder).parameters.values())[given:]
    except (TypeError, ValueError):  # no signature, as of a class written in C
        return {}
    by_name = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: value for name, value in values.items() if name in by_name}


def _callable(model: ModelSpec, reference: Reference) -> Callable[..., Any]:
    if not model.trusted and (reference.is_file or not _defines_networks(reference.name)):
        raise Unavailable(f"a manifest may not name code such as {model.ref}", "name it on the command line instead")
    module = _imported_file(Path(reference.name)) if reference.is_file else _imported(reference.name)
    function = getattr(module, reference.function, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise unknown_name(
            f"callable in {reference.name}", reference.function, near_names(reference.function, names), error=InputError
        )
    if not model.trusted:
        if not _defines_networks(str(getattr(function, "__module__", ""))):
            raise Unavailable(f"{model.ref} is code of another package", "name it on the command line instead")
        _refuse_fetching(model, _named_arguments(function, model))
    return function  # type: ignore[no-any-return]


def _defines_networks(module: str) -> bool:
    """Whether a module defines networks; the libraries' private helpers download and write files."""
    private = any(part.startswith("_") for part in module.split("."))
    return in_libraries(module) and not private and not module.startswith(_HELPERS)


def _named_arguments(function: Callable[..., Any], model: ModelSpec) -> dict[str, Any]:
    """Return the arguments of a call by name, positional ones too."""
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


def _imported(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name in ("pytorchcv", "pytorchcv.model_provider"):
            raise Unavailable("pytorchcv is not installed", "pip install 'dfqbench[pytorchcv]'") from error
        raise InputError(f"there is no module {error.name}", f"correct the reference to {module}") from error
    except Exception as error:  # the user's module may raise anything
        raise InputError(f"{module} does not import: {first_line(error)}", "correct the module") from error


def _imported_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"there is no Python file {path}", "correct the path in the reference")
    try:
        with rollback_imports(local_module_name(path)):
            return import_local(path)
    except Exception as error:  # the user's file may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{path} does not import: {reason}", "correct it") from error


def _check_outputs(model: ModelSpec, module: nn.Module, device: torch.device) -> None:
    """Run one black image, so that a network that does not fit its card fails before hours are spent on it."""
    shape = "x".join(str(number) for number in model.card.input_size)
    image = torch.zeros(1, *model.card.input_size, device=device).contiguous(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            logits = module(image)
    except Exception as error:  # a network may raise anything on the wrong shape
        reason = first_line(error)
        raise InputError(f"{model.name} does not take {shape} images: {reason}", "correct input_size") from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, model.card.classes):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(
            f"{model.name} gives {got} for one {shape} image, not (1, {model.card.classes})",
            "correct the number of classes in the card or in the arguments",
        )
