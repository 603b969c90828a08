"""The images of the `real` control; files hold only their numbers in the training split, and a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dfqbench.api.errors import InputError
from dfqbench.models.spec import ModelSpec
from dfqbench.run.store.state_file import read_state, write_state
from dfqbench.synth.source import FixedSource
from dfqbench.targets.evaluation import load_training
from dfqbench.targets.spec import DatasetSpec


class RealImages(FixedSource):
    """Images of a training split, read anew wherever they are used: plugin code must not find them in files.

    Args:
        dataset: the data set.
        model: the network whose input space they are in.
        indices: their numbers in the training split.

    Raises:
        Unavailable: the data set has no training split.
        InputError: it cannot be read, or has no such images.
    """

    def __init__(self, dataset: DatasetSpec, model: ModelSpec, indices: Sequence[int]) -> None:
        super().__init__(*load_training(dataset, model.card, indices))
        self._dataset = replace(dataset, evaluate=_absolute(dataset.evaluate), train=_absolute(dataset.train))
        self._model = model
        self._indices = list(indices)
        self._sha256 = _sha256(self.images)

    def first(self, count: int) -> dict[str, Any]:
        """Return the state of a source of the first `count` images."""
        return self._state(self._indices[:count], _sha256(self.images[:count]), 0)

    def state_dict(self) -> dict[str, Any]:
        """Return data set, network, numbers, hash and the position of the next draw."""
        return self._state(self._indices, self._sha256, self._cursor)

    def _state(self, indices: list[int], sha256: str, cursor: int) -> dict[str, Any]:
        return {
            "dataset": self._dataset.as_dict(),
            "model": self._model.as_dict(),
            "indices": torch.tensor(indices),
            "sha256": sha256,
            "cursor": cursor,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position of the next draw.

        Raises:
            InputError: the state is that of other images.
        """
        if state["sha256"] != self._sha256:
            raise InputError(f"the training images of '{self._dataset.name}' are not those that were chosen before")
        self._cursor = int(state["cursor"])

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> RealImages:
        """Read the images of what `state_dict` returned; raises as the constructor and `load_state_dict`."""
        dataset, model = DatasetSpec.from_dict(state["dataset"]), ModelSpec.from_dict(state["model"])
        source = cls(dataset, model, state["indices"].tolist())
        source.load_state_dict(state)
        return source


def save_first(source: RealImages, count: int, file: Path) -> None:
    """Write which images are the first of a source."""
    write_state(file, source.first(count))


def load_first(file: Path) -> RealImages:
    """Read the images of what `save_first` wrote; raises as `RealImages.from_state` and `read_state`."""
    return RealImages.from_state(read_state(file, torch.device("cpu")))


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def _sha256(images: Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()
