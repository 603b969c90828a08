"""Networks as plain data: a reference with weights, which another process can build."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from dfqbench.api.card import ModelCard

_adapter: Callable[[Any], TypeAdapter[Any]] = functools.cache(TypeAdapter)


class JsonData:
    """Base of dataclasses that are passed between processes as JSON."""

    __slots__ = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON data; `from_dict` reads it back."""
        data: dict[str, Any] = _adapter(type(self)).dump_python(self, mode="json")
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read the result of `as_dict`.

        Raises:
            ValueError: a key is missing or its value has another type; the message is one line.
        """
        try:
            instance: Self = _adapter(cls).validate_python(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        return instance


@dataclass(frozen=True, slots=True)
class ModelSpec(JsonData):
    """A network with weights.

    Attributes:
        target: name of the target it belongs to.
        name: name in tables and selectors.
        ref: reference, for example `cifar:resnet20` or `py:package.module:function`.
        card: input size, normalisation, classes.
        args: positional arguments of the builder.
        kwargs: keyword arguments of the builder; JSON values.
        weights: file of the weights, or None.
        random_seed: seed of random weights, or None.
        top1: published full-precision top-1 in percent, or None.
        trusted: whether the user named the reference; code named in a manifest is limited to model libraries.
        sha256: expected hash of the weights file, or None: not checked.
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
