"""The student that an attempt has made: checked, kept for evaluation elsewhere, or evaluated on the spot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from dfqbench.api.batch import Batch
from dfqbench.api.errors import NonFiniteError
from dfqbench.run.evaluate.accuracy import accuracy, predict
from dfqbench.run.execute.job import Job
from dfqbench.run.store.files import IMAGES_FILE
from dfqbench.run.worker.memory import peak_mib
from dfqbench.targets.evaluation import load_evaluation
from dfqbench.targets.spec import DatasetSpec, ModelSpec

KEPT_IMAGES = 64


def check_finite(student: nn.Module) -> None:
    """Refuses a student whose accuracy would mean nothing.

    Raises:
        NonFiniteError: a parameter or range is not a number.
    """
    for name, value in student.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise NonFiniteError(f"the student's {name}")


def save_images(batch: Batch, folder: Path) -> None:
    """Saves images, and their labels, to look at, in the folder of an attempt."""
    tensors = {"images": batch.images, "labels": batch.labels}
    found = {name: value.detach().cpu().contiguous() for name, value in tensors.items() if value is not None}
    save_file(found, folder / IMAGES_FILE)


def evaluated_here(student: nn.Module, teacher: nn.Module, job: Job, device: torch.device) -> dict[str, Any]:
    """Evaluates a module that only the plugin's code can run; its operands cannot be checked.

    Args:
        student: what the plugin has made.
        teacher: the full-precision network.
        job: names data and network.
        device: of both networks.

    Returns:
        As plain data for the record.
    """
    begin = time.monotonic()
    data = load_evaluation(DatasetSpec.from_dict(job.dataset), ModelSpec.from_dict(job.model).card, job.limit)
    found = accuracy(predict(student.eval(), data, device), predict(teacher, data, device), data)
    unchecked: dict[str, Any] = {"coverage": None, "violations": [], "levels_ok": None, "peak_mib": peak_mib(device)}
    return found | unchecked | {"seconds": time.monotonic() - begin}
