"""The diagnosis of a run: every finished cell, into its record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dfqbench.api.errors import DfqError, InputError
from dfqbench.diagnose.cell import VERSION, diagnose
from dfqbench.models.build import build_teacher
from dfqbench.models.spec import ModelSpec
from dfqbench.quant.student import DESCRIPTION_FILE
from dfqbench.report.pictures.images import load_images, load_kept_images, training_images
from dfqbench.report.record_access import finished, latest
from dfqbench.run.execute.job import JOB
from dfqbench.run.plan.identity import canonical
from dfqbench.run.store.record import Record
from dfqbench.run.store.run_folder import RunFolder


@dataclass(slots=True)
class Diagnosed:
    """The result of diagnosing a run."""

    records: list[Record]  # of the run, with their diagnostics
    done: int = 0  # cells that were diagnosed now
    before: int = 0  # cells that had been before
    problems: list[str] = field(default_factory=list)  # a line for each cell that could not be


def diagnose_run(
    folder: RunFolder,
    device: str = "cpu",
    families: Mapping[str, str] | None = None,
    *,
    trust: bool = False,
    again: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Diagnosed:
    """Diagnose the newest attempt at every finished cell of a run and write the results into the records.

    Args:
        folder: of the run.
        device: where networks run.
        families: model families that plugins offer.
        trust: whether code that the run's folder names outside model libraries may be run.
        again: whether cells that have been diagnosed are diagnosed again.
        say: called with each cell before it is measured.
    """
    pairs = [(record, file) for record, file in folder.records() if record is not None]
    result = Diagnosed([record for record, _ in pairs])
    chosen = {id(record) for record in latest(result.records) if finished(record)}
    teachers: dict[str, nn.Module] = {}
    for record, file in pairs:
        if id(record) not in chosen:
            continue
        label = f"{record.label} {record.cell_id}"
        if record.diagnostics.version == VERSION and not again:
            result.before += 1
            continue
        try:
            say(label)
            images, labels = _tensors(*load_kept_images(file.parent))
            model = _model(file.parent, trust=trust)
            key = canonical(model.as_dict())
            if key not in teachers:
                # One network at a time: cells come in no order, but large ones should not pile up.
                teachers = {key: build_teacher(model, torch.device(device), families or {})}
            training = {s: _tensors(*load_images(kept))[0] for s, kept in training_images(file.parent).items()}
            record.diagnostics = diagnose(teachers[key], images, labels, training)
        except (DfqError, RuntimeError) as error:
            result.problems.append(f"{label}: {error}")
            continue
        try:
            folder.write_record(file.parent, record)
        except (OSError, ValueError) as error:
            # A record that another tool wrote may hold NaN, which is kept and is no JSON.
            reason = getattr(error, "strerror", None) or error
            result.problems.append(f"{label}: its record cannot be written: {reason}")
            continue
        result.done += 1
    return result


def _tensors(images: NDArray[np.float32], labels: NDArray[np.int64] | None) -> tuple[Tensor, Tensor | None]:
    return torch.from_numpy(images), None if labels is None else torch.from_numpy(labels)


def _model(attempt: Path, *, trust: bool) -> ModelSpec:
    """Return the network that an attempt was made for.

    Raises:
        InputError: the folder does not name it.
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
