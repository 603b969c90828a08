"""What a cell has kept on disk: its network, its images, and images of points of its training."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dfqbench.api.errors import InputError
from dfqbench.models.spec import ModelSpec
from dfqbench.quant.student import DESCRIPTION_FILE
from dfqbench.run.execute.job import JOB
from dfqbench.run.store.training_folder import TrainingFolder

IMAGES_FILE = "images.safetensors"


@dataclass(frozen=True, slots=True)
class Kept:
    """Images of a source.

    Attributes:
        images: (N, C, H, W), float32, in the teacher's normalised input space.
        labels: int64 (N,), the source's own (soft ones as their largest); None where it gave none.
    """

    images: Tensor
    labels: Tensor | None


def kept_images(file: Path) -> Kept:
    """Reads images that a run has kept.

    Raises:
        InputError: the file is missing or holds something else.
    """
    try:
        tensors = load_file(file)
        images = tensors["images"].float()
        labels = tensors.get("labels")
    except FileNotFoundError as error:
        raise InputError(f"{file} is missing", "the attempt kept no images; run its cell again") from error
    except (OSError, KeyError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read: {error}", "run its cell again") from error
    if images.ndim != 4 or not len(images) or (labels is not None and len(labels) != len(images)):
        raise InputError(f"{file} does not hold images (N, C, H, W) with as many labels", "run its cell again")
    if labels is not None and labels.ndim == 2:
        labels = labels.argmax(1)
    return Kept(images, None if labels is None else labels.long())


def kept_training(attempt: Path) -> dict[int, Kept]:
    """Images of a live source at points of its training, by step; empty for a fixed source."""
    return {step: kept_images(file) for step, file in TrainingFolder(attempt).images().items()}


def kept_model(attempt: Path, *, trust: bool = False) -> ModelSpec:
    """The network that an attempt was made for.

    Args:
        attempt: its folder.
        trust: whether code that the folder names outside model libraries may be run.

    Raises:
        InputError: the folder does not tell.
    """
    for name in (DESCRIPTION_FILE, JOB):
        try:
            model = ModelSpec.from_dict(json.loads((attempt / name).read_text(encoding="utf-8"))["model"])
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{attempt / name} cannot be read: {error}", "run its cell again") from error
        return model if trust else dataclasses.replace(model, trusted=False)
    raise InputError(f"{attempt} does not tell its network", "run its cell again")
