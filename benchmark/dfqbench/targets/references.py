"""Models that users name by reference: `torchvision:resnet18?weights=random`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dfqbench.api.errors import InputError, Unavailable, UsageError
from dfqbench.models.identity import is_file
from dfqbench.models.reference import CODE_SCHEME, SCHEMES, parse_reference
from dfqbench.models.spec import ModelSpec
from dfqbench.targets.cards import make_card
from dfqbench.targets.spec import DatasetSpec, MissingModel

FETCHABLE = ("torchvision", "timm", "pytorchcv")
"""Families whose weights `dfqbench fetch` can get."""
WELL_KNOWN = ("torchvision:resnet18", "torchvision:resnet50", "torchvision:mobilenet_v2")
"""Networks of the `imagenet` target that are listed before they are fetched."""


def model_from_reference(
    text: str, target: str, dataset: DatasetSpec | None, families: Iterable[str] = ()
) -> ModelSpec | MissingModel:
    """Make a model of a target from a reference that a user typed.

    The options `weights=random`, `weights=PATH`, `input_size`, `classes`, `mean` and `std` describe the model; the
    others are passed to the builder.

    Args:
        text: the reference; relative files start from the working folder.
        target: name of the target.
        dataset: its evaluation set; sizes that are not given come from it.
        families: model families that plugins offer.

    Returns:
        The model, or the reason why it cannot be built.

    Raises:
        UsageError: the reference is not one, or names a file or a library's network that is not there.
    """
    reference = parse_reference(text, tuple(families))
    options = dict(reference.options)
    weights = options.pop("weights", None)
    where = f"'{text}'"
    card = make_card(where, target=target, dataset=dataset, **_pop_card_options(where, options))
    ref = reference.bare
    if reference.is_file:
        code = _absolute(where, reference.name)
        if not is_file(code):
            raise InputError(f"there is no file {code}", "correct the path in the reference")
        ref = f"{CODE_SCHEME}:{code}:{reference.function}"
    if reference.scheme in FETCHABLE:
        from dfqbench.models.build import library_builder  # imports torch

        try:
            library_builder(reference.scheme, reference.name)
        except Unavailable as error:
            return MissingModel(text, str(error))
    if weights is None and reference.scheme in SCHEMES and reference.scheme != CODE_SCHEME:
        return MissingModel(text, missing_reason(ref))
    file, seed = None, 0 if weights == "random" else None
    if weights not in (None, "random"):
        file = _absolute(where, str(weights))
        if not is_file(file):
            raise InputError(f"{where}: there is no weights file {file}", "correct the path, or write weights=random")
    return ModelSpec(target, text, ref, card, kwargs=options, weights=file, random_seed=seed, trusted=True)


def _absolute(where: str, text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise InputError(f"{where}: there is no user of the folder {text}", "write the whole path") from error


def missing_reason(ref: str) -> str:
    """Say how to get the weights of a model that no data folder has."""
    alternatives = f"'{ref}?weights=PATH' or '{ref}?weights=random'"
    if ref.partition(":")[0] in FETCHABLE:
        return f"no weights for {ref}; run: dfqbench fetch {ref} (or name {alternatives})"
    return f"no weights for {ref}; put them in a targets.toml, or name {alternatives}"


def _pop_card_options(where: str, options: dict[str, Any]) -> dict[str, Any]:
    """Remove the values of a card from the options and return them, checked. JSON's true is no number."""
    values: dict[str, Any] = {
        key: options.pop(key) for key in ("input_size", "classes", "mean", "std") if key in options
    }
    for key in ("mean", "std"):
        if key in values:
            numbers = values[key] if isinstance(values[key], list) else [values[key]]
            if not all(type(number) in (int, float) for number in numbers):
                raise UsageError(f"{where}: {key} {values[key]} is not a list of numbers", f"write {key}=[0.5,0.5,0.5]")
            values[key] = [float(number) for number in numbers]
    size, classes = values.get("input_size"), values.get("classes")
    if size is not None and not all(type(number) is int for number in (size if isinstance(size, list) else [size])):
        raise UsageError(f"{where}: input_size {size} is wrong", "give pixels, or [channels,height,width]")
    if classes is not None and type(classes) is not int:
        raise UsageError(f"{where}: classes {classes} is not a whole number", "give the number of outputs")
    return values
