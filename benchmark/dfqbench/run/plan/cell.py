"""Cells: one point of a grid each, as plain data with its identities."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from dfqbench.api.budget import Budget
from dfqbench.api.precision import Precision
from dfqbench.grid.choice import MethodChoice
from dfqbench.models.spec import ModelSpec
from dfqbench.quant.scheme import Scheme
from dfqbench.run.plan.identity import host_code, identity
from dfqbench.run.store.status import Status
from dfqbench.targets.spec import DatasetSpec

DATA_CODE = (
    "targets/decoded_cache.py",
    "targets/evaluation.py",
    "targets/layouts.py",
    "targets/pixels.py",
    "targets/wnids.txt",
)
"""The host's code that decides which pixels and labels are read."""
FAST_FORMS = ("accel",)
"""The host's code of operators' fast forms and of CUDA graphs."""
QUANT_IN_SYNTH = ("quant/operators.py",)
"""The files of `quant` that `synth` imports."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a planned cell cannot be run.

    Attributes:
        status: what its record will say.
        message: the reason, one line.
    """

    status: Status
    message: str


@dataclass(frozen=True, slots=True)
class Part:
    """A method or quantizer with its parameters.

    Attributes:
        name: name that users type.
        version: distribution and version, or the local file.
        code: hash of the text of its code.
        params: every parameter, JSON-able.
        changed: names of those that are not what the method itself, or a cross without a written recipe, would take;
            no part of identities, which hold the values.
    """

    name: str
    version: str
    code: str
    params: dict[str, Any]
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of a grid.

    Attributes:
        choice: method and, for a cross, quantizer.
        method: the method.
        quantizer: the quantizer.
        title: the method's title.
        fidelity: how closely the method follows its authors.
        control: whether the method is a floor or ceiling.
        depends_on_bits: whether its source looks at the scheme.
        dataset: the evaluation set.
        dataset_hash: its fingerprint.
        model_name: the network's name in tables.
        model: the network, or None where it is missing.
        model_key: identity of network and weights.
        scheme: what is quantized.
        budget: length of schedules.
        precision: how the training loops compute (`api.Precision`).
        threads: CPU threads.
        seed: the cell's seed.
        limit: evaluation images, or None: all.
        problem: why it cannot be run, or None.
    """

    choice: MethodChoice
    method: Part
    quantizer: Part
    title: str
    fidelity: str
    control: bool
    depends_on_bits: bool
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
        """What decides the images, but for the text of the code."""
        return {
            "method": self.method.name,
            "params": self.method.params,
            "model": self.model_key,
            "model_name": self.model_name if self.model is None else None,
            "budget": {key: str(value) for key, value in dataclasses.asdict(self.budget).items()},
            "precision": self.precision,
            "threads": self.threads,
            "seed": self.seed,
            "scheme": self.scheme.as_dict() if self.depends_on_bits else None,
        }

    @property
    def seed_key(self) -> str:
        """What seeds derive from: the source's identity without code, so that a refactoring keeps the numbers.

        Random streams are the same in every precision, so that precisions can be compared pair by pair.
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
        """Identity of network and evaluation: cells that have it in common can be evaluated in one pass."""
        return identity({"model": self.model_key, "name": self.model_name} | self._evaluation_facts())

    def _evaluation_facts(self) -> dict[str, Any]:
        return {
            "target": self.dataset.name,
            "dataset": self.dataset_hash,
            "limit": self.limit,
            "preprocessing": self.preprocessing,
            "code": host_code(*DATA_CODE, "run/evaluate/accuracy.py", "run.evaluate.accuracy.py"),
        }

    def goes_with(self, other: Cell) -> bool:
        """Whether another cell differs in the scheme only, and the images of both are the same."""
        return not self.depends_on_bits and dataclasses.replace(other, scheme=self.scheme) == self

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How evaluation images become the network's input."""
        card = None if self.model is None else self.model.as_dict()["card"]
        return {"resize": self.dataset.resize, "crop": self.dataset.crop, "card": card}

    @property
    def label(self) -> str:
        """For progress lines: method, model, scheme, seed."""
        return f"{self.choice.label} {self.dataset.name}/{self.model_name} {self.scheme.label} seed {self.seed}"
