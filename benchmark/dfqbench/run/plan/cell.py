"""Cells: the points of a grid, as plain data with identities."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dfqbench.api.budget import Budget
from dfqbench.api.precision import Precision
from dfqbench.grid.choice import NO_IMAGES, MethodChoice
from dfqbench.models.spec import ModelSpec
from dfqbench.quant.range_rules import FROM_BATCHNORM
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
"""Code of the host that decides which pixels and labels are read."""
FAST_FORMS = ("accel",)
"""Code of the host for fast forms of operators and CUDA graphs."""
QUANT_IN_SYNTH = ("quant/operators.py",)
"""The files of `quant` that `synth` imports."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a planned cell cannot be run."""

    status: Status  # of its record
    message: str  # one line


@dataclass(frozen=True, slots=True)
class Part:
    """A method or quantizer with its parameters."""

    name: str  # as users type it
    version: str  # distribution and version, or the local file
    code: str  # hash of the text of its code
    params: dict[str, Any]  # every parameter, JSON-able
    changed: tuple[str, ...] = ()  # names of the parameters whose values are not the defaults; no part of identities
    recipe: str | None = None  # of a quantizer: named values of its parameters
    recipe_changes: tuple[str, ...] = ()  # names of the parameters whose values are not the recipe's


@dataclass(frozen=True, slots=True)
class MethodPart(Part):
    """A method with its parameters."""

    title: str = ""  # as in tables
    paper: str = ""  # citation
    link: str = ""  # web address of the paper
    fidelity: str = "unknown"  # how closely it follows its authors
    control: bool = False  # whether it is a control, such as `noise`
    depends_on_bits: bool = True  # whether its source depends on the scheme
    own_quantize: bool = False  # whether its students are made by a `quantize` of its own, unless crossed


@dataclass(frozen=True)
class Cell:
    """One point of a grid; its identities are computed once."""

    choice: MethodChoice  # names of the method and, for a cross, of the quantizer
    method: MethodPart
    quantizer: Part
    dataset: DatasetSpec  # the evaluation set
    dataset_hash: str  # its fingerprint
    model_name: str  # the network's name in tables
    model: ModelSpec | None  # the network, or None where it is missing
    model_key: dict[str, Any]  # identity of network and weights
    scheme: Scheme  # what is quantized
    budget: Budget  # length of schedules
    precision: str  # of the training loops (`api.Precision`)
    threads: int  # CPU threads
    seed: int
    limit: int | None  # evaluation images, or None: all
    problem: Problem | None = None  # why it cannot be run, or None

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

    @cached_property
    def source_id(self) -> str:
        """Identity of the images."""
        return identity(
            self._source_facts() | {"code": [self.method.code, host_code("synth", "api", *QUANT_IN_SYNTH, *FAST_FORMS)]}
        )

    @cached_property
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

    @cached_property
    def cell_id(self) -> str:
        """Identity of the cell: the student and what it is evaluated on."""
        return identity({"student": self.student_id} | self._evaluation_facts())

    @cached_property
    def evaluation_id(self) -> str:
        """Identity of network and evaluation set: cells with the same one can be evaluated in one pass."""
        return identity({"model": self.model_key, "name": self.model_name} | self._evaluation_facts())

    @cached_property
    def params_id(self) -> str:
        """Identity of the parameters of method and quantizer."""
        return identity({"method": self.method.params, "quantizer": self.quantizer.params})

    def _evaluation_facts(self) -> dict[str, Any]:
        return {
            "target": self.dataset.name,
            "dataset": self.dataset_hash,
            "limit": self.limit,
            "preprocessing": self.preprocessing,
            "code": host_code(*DATA_CODE, "run/evaluate/accuracy.py", "run.evaluate.accuracy.py"),
        }

    def shares_source(self, other: Cell) -> bool:
        """Check that another cell differs in the scheme only, and both have the same images and plan no bits."""
        planned = self.scheme.mixed or other.scheme.mixed
        if planned or self.method.depends_on_bits or self.source_id != other.source_id:
            return False
        return dataclasses.replace(other, scheme=self.scheme) == self

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How evaluation images become the network's input."""
        card = None if self.model is None else self.model.as_dict()["card"]
        return {"resize": self.dataset.resize, "crop": self.dataset.crop, "card": card}

    @property
    def own_quantize(self) -> bool:
        """Whether the method's own `quantize` makes the student."""
        return self.choice.quantizer is None and self.method.own_quantize

    @property
    def range_rule(self) -> str:
        """Range rule of the shared quantizer; empty: it has none, or the method's own `quantize` makes the student."""
        params = self.quantizer.params
        without = params.get("without_images") if self.method.name == NO_IMAGES else None
        return (
            "" if self.own_quantize else str(FROM_BATCHNORM if without == FROM_BATCHNORM else params.get("range", ""))
        )

    @property
    def label(self) -> str:
        """For progress lines: method, model, scheme, seed."""
        return f"{self.choice.label} {self.dataset.name}/{self.model_name} {self.scheme.label} seed {self.seed}"
