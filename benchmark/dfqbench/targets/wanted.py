"""Models that a user names by reference: `torchvision:resnet18?weights=random`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dfqbench.api.errors import InputError, UsageError
from dfqbench.models.reference import CODE_SCHEME, SCHEMES, Reference, parse_reference, unknown_architecture
from dfqbench.models.spec import ModelSpec
from dfqbench.targets.domain import make_card
from dfqbench.targets.spec import DatasetSpec, MissingModel

FETCHABLE = ("torchvision", "timm", "pytorchcv")
"""Families whose weights `dfqbench fetch` can get."""
WELL_KNOWN = ("torchvision:resnet18", "torchvision:resnet50", "torchvision:mobilenet_v2")
"""Networks of the `imagenet` target that are known by name before they are fetched."""

_CARD_KEYS = ("input_size", "classes", "mean", "std")
_RANDOM = "random"


def requested_model(
    text: str, target: str, dataset: DatasetSpec | None, families: Iterable[str] = ()
) -> ModelSpec | MissingModel:
    """Turns a reference that a user typed into a model of a target.

    `weights=random`, `weights=PATH`, `input_size`, `classes`, `mean` and `std` are taken from its options; the others
    are passed to the builder.

    Args:
        text: the reference; relative files start from the working folder.
        target: name of the target.
        dataset: its evaluation set; sizes that are not given come from it.
        families: model families that plugins offer.

    Returns:
        The model, or the reason why it cannot be built.

    Raises:
        UsageError: the reference is not one, or names a file that is not there.
    """
    families = tuple(families)
    reference = parse_reference(text, families)
    unknown = unknown_architecture(reference)
    if unknown is not None:
        raise unknown
    options = dict(reference.options)
    weights = options.pop("weights", None)
    where = f"'{text}'"
    card = make_card(where, target=target, dataset=dataset, **_card_values(where, options))
    bare = _absolute(reference)
    if weights is None and reference.scheme in SCHEMES and reference.scheme != CODE_SCHEME:
        return MissingModel(text, missing_reason(reference.bare))
    path = None if weights in (None, _RANDOM) else _weights_file(where, weights)
    return ModelSpec(
        target=target,
        name=text,
        ref=bare,
        card=card,
        kwargs=options,
        weights=path,
        random_seed=0 if weights == _RANDOM else None,
        trusted=True,
    )


def missing_reason(bare: str) -> str:
    """What to do about a model whose weights are not in any data folder."""
    alternatives = f"'{bare}?weights=PATH' or '{bare}?weights=random'"
    if bare.partition(":")[0] in FETCHABLE:
        return f"no weights for {bare}; run: dfqbench fetch {bare} (or name {alternatives})"
    return f"no weights for {bare}; put them in a targets.toml, or name {alternatives}"


def _card_values(where: str, options: dict[str, Any]) -> dict[str, Any]:
    values = {key: options.pop(key) for key in _CARD_KEYS if key in options}
    for key in ("mean", "std"):
        if key in values:
            values[key] = _numbers(where, key, values[key])
    size = values.get("input_size")
    if size is not None and not _is_size(size):
        raise UsageError(f"{where}: input_size {size} is wrong", "give pixels, or [channels,height,width]")
    classes = values.get("classes")
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int)):
        raise UsageError(f"{where}: classes {classes} is not a whole number", "give the number of outputs")
    return values


def _is_size(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)


def _numbers(where: str, key: str, value: Any) -> list[float]:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in items):
        raise UsageError(f"{where}: {key} {value} is not a list of numbers", f"write {key}=[0.5,0.5,0.5]")
    return [float(item) for item in items]


def _absolute(reference: Reference) -> str:
    if not reference.is_file:
        return reference.bare
    path = Path(reference.name).expanduser().absolute()
    if not path.is_file():
        raise InputError(f"there is no file {path}", "correct the path in the reference")
    return f"{CODE_SCHEME}:{path}:{reference.function}"


def _weights_file(where: str, value: Any) -> Path:
    path = Path(str(value)).expanduser().absolute()
    if not path.is_file():
        raise InputError(f"{where}: there is no weights file {path}", "correct the path, or write weights=random")
    return path
