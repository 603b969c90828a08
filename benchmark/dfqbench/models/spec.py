"""Networks as plain data: a reference with weights, which another process can build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfqbench.api.card import InputStats, ModelCard


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A network with weights, as data that a worker process can be handed.

    Attributes:
        target: name of the target it belongs to.
        name: name in tables and selectors.
        ref: reference, for example `cifar:resnet20` or `py:package.module:function`.
        args: positional arguments of the builder.
        kwargs: keyword arguments of the builder; JSON values.
        weights: file of the weights, or None.
        random_seed: seed of random weights, or None.
        card: input size, normalisation, classes.
        top1: full-precision top-1 in percent as given beside the weights, or None.
        trusted: whether the user named the reference; code named in a manifest is limited to model libraries.
        sha256: what the weights file must hash to, or None: not checked.
    """

    target: str
    name: str
    ref: str
    card: ModelCard
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    random_seed: int | None = None
    top1: float | None = None
    trusted: bool = False
    sha256: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` reads it back."""
        return {
            "target": self.target,
            "name": self.name,
            "ref": self.ref,
            "card": card_as_dict(self.card),
            "args": list(self.args),
            "kwargs": dict(self.kwargs),
            "weights": None if self.weights is None else str(self.weights),
            "random_seed": self.random_seed,
            "top1": self.top1,
            "trusted": self.trusted,
            "sha256": self.sha256,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Reads what `as_dict` wrote."""
        return cls(
            **{
                **data,
                "card": card_from_dict(data["card"]),
                "args": tuple(data["args"]),
                "kwargs": dict(data["kwargs"]),
                "weights": None if data["weights"] is None else Path(data["weights"]),
            }
        )


def card_as_dict(card: ModelCard) -> dict[str, Any]:
    """A model card as plain JSON data."""
    return {
        "input_size": list(card.input_size),
        "mean": list(card.mean),
        "std": list(card.std),
        "classes": card.classes,
        "stats": None if card.stats is None else {"mean": list(card.stats.mean), "std": list(card.stats.std)},
    }


def card_from_dict(data: Mapping[str, Any]) -> ModelCard:
    """Reads what `card_as_dict` wrote."""
    channels, height, width = data["input_size"]
    stats = data.get("stats")
    return ModelCard(
        input_size=(channels, height, width),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        classes=data["classes"],
        stats=None if stats is None else InputStats(tuple(stats["mean"]), tuple(stats["std"])),
    )
