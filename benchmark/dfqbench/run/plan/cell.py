"""Cells: the points of a grid, as plain data with identities."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from dfqbench.api.budget import Budget
from dfqbench.api.precision import Precision
from dfqbench.grid.choice import MethodChoice
from dfqbench.quant.scheme import Scheme
from dfqbench.run.plan.identity import host_code, identity
from dfqbench.run.store.status import Status
from dfqbench.targets.spec import DatasetSpec, ModelSpec, card_as_dict

DATA_CODE = (
    "targets/decoded.py",
    "targets/evaluation.py",
    "targets/pixels.py",
    "targets/wnids.py",
    "targets/wnids.txt",
)
"""Code of the host that decides which pixels and labels are read."""
FAST_FORMS = ("accel",)
"""Code of the host for fast forms of operators and CUDA graphs."""
QUANT_IN_SYNTH = ("quant/operators.py",)
"""The files of `quant` that `synth` imports."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a planned cell cannot be run.

    Attributes:
        status: of its record.
        message: one line.
    """

    status: Status
    message: str


@dataclass(frozen=True, slots=True)
class Part:
    """A method or quantizer with its parameters.

    Attributes:
        name: as users type it.
        version: distribution and version, or the local file.
        code: hash of the text of its code.
        params: every parameter, JSON-able.
        changed: names of the parameters whose values are not the defaults; no part of identities.
    """

    name: str
    version: str
    code: str
    params: dict[str, Any]
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MethodPart(Part):
    """A method with its parameters.

    Attributes:
        title: as in tables.
        fidelity: how closely it follows its authors.
        control: whether it is a floor or ceiling.
        depends_on_bits: whether its source depends on the scheme.
    """

    title: str = ""
    fidelity: str = "unknown"
    control: bool = False
    depends_on_bits: bool = True


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of a grid.

    Attributes:
        choice: names of the method and, for a cross, of the quantizer.
        method: the method.
        quantizer: the quantizer.
        dataset: the evaluation set.
        dataset_hash: its fingerprint.
        model_name: the network's name in tables.
        model: the network, or None where it is missing.
        model_key: identity of network and weights.
        scheme: what is quantized.
        budget: length of schedules.
        precision: of the training loops (`api.Precision`).
        threads: CPU threads.
        seed: the cell's seed.
        limit: evaluation images, or None: all.
        problem: why it cannot be run, or None.
    """

    choice: MethodChoice
    method: MethodPart
    quantizer: Part
    dataset: DatasetSpec
    dataset_hash: str
    model_name: str
    model: ModelSpec | None
    model_key: dict[str, Any]
    scheme: Scheme
    budget: Budget
    precision: str
    threads: int
    seed: int
    limit: int | None
    problem: Problem | None = None

    def _source_facts(self) -> dict[str, Any]:
        """Return what decides the images, except the text of the code."""
        return {
            "method": self.method.name,
            "params": self.method.params,
            "model": self.model_key,
            "model_name": self.model_name if self.model is None else None,
            "budget": {key: str(value) for key, value in dataclasses.asdict(self.budget).items()},
            "precision": self.precision,
            "threads": self.threads,
            "seed": self.seed,
            "scheme": self.scheme.as_dict() if self.method.depends_on_bits else None,
        }

    @property
    def seed_key(self) -> str:
        """Key of the seeds: the source's identity without code, so that a refactoring keeps the numbers.

        It is the same in every precision, so that precisions can be compared pair by pair.
        """
        return identity(self._source_facts() | {"precision": Precision.FLOAT32})

    @property
    def source_id(self) -> str:
        """Identity of the images."""
        return identity(
            self._source_facts() | {"code": [self.method.code, host_code("synth", "api", *QUANT_IN_SYNTH, *FAST_FORMS)]}
        )

    @property
    def student_id(self) -> str:
        """Identity of the student."""
        facts = {
            "source": self.source_id,
            "scheme": self.scheme.as_dict(),
            "quantizer": self.quantizer.name,
            "params": self.quantizer.params,
            "own": self.choice.quantizer is None,
            "code": [self.quantizer.code, host_code("quant", "quantizers", *FAST_FORMS)],
        }
        return identity(facts)

    @property
    def cell_id(self) -> str:
        """Identity of the cell: the student and what it is evaluated on."""
        return identity({"student": self.student_id} | self._evaluation_facts())

    @property
    def evaluation_id(self) -> str:
        """Identity of network and evaluation set: cells with the same one can be evaluated in one pass."""
        return identity({"model": self.model_key, "name": self.model_name} | self._evaluation_facts())

    def _evaluation_facts(self) -> dict[str, Any]:
        return {
            "target": self.dataset.name,
            "dataset": self.dataset_hash,
            "limit": self.limit,
            "preprocessing": self.preprocessing,
            "code": host_code(*DATA_CODE, "run/evaluate/accuracy.py", "run/evaluate/per_image.py"),
        }

    def shares_source(self, other: Cell) -> bool:
        """Check that another cell differs in the scheme only, and both have the same images."""
        return not self.method.depends_on_bits and dataclasses.replace(other, scheme=self.scheme) == self

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How evaluation images become the network's input."""
        card = None if self.model is None else card_as_dict(self.model.card)
        return {"resize": self.dataset.resize, "crop": self.dataset.crop, "card": card}

    @property
    def label(self) -> str:
        """For progress lines: method, model, scheme, seed."""
        return f"{self.choice.label} {self.dataset.name}/{self.model_name} {self.scheme.label} seed {self.seed}"
