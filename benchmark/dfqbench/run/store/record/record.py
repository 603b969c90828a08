"""The record itself, and reading it from a file of any schema."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field, PrivateAttr, ValidationError

from dfqbench.run.store.record.parts import (
    Counts,
    Coverage,
    Dataset,
    Diagnostics,
    Error,
    Model,
    Origin,
    Part,
    PeakMemory,
    Preprocessing,
    SchemeFacts,
    Seconds,
    Snapshot,
    Versions,
)

SCHEMA = 2
"""Number of the record's schema; older numbers stay readable."""
_REQUIRED = {"schema": int, "cell_id": str, "status": str}
_OBJECTS = ("seconds", "error", "model", "scheme", "dataset", "params", "coverage", "counts", "peak_mib")
_NUMBERS = ("top1", "fp_top1", "drop", "top1_se", "agreement", "seed", "attempt")
_PLAIN = {"model": "name", "scheme": "label"}
"""Objects that were plain names before schema 1, with the key of the name."""


class Record(Part):
    """One attempt at one cell.

    Attributes:
        schema: number of this schema.
        run: the run's name.
        source_id: identity of the source.
        student_id: identity of the student; holds that of the source.
        cell_id: identity of the cell; holds that of the student.
        attempt: number of the attempt, from 1.
        status: how it ended, such as `ok` or `failed`.
        flags: what restricts the result.
        started_at: ISO time.
        finished_at: ISO time; null: not finished.
        method: the method's name.
        label: method and, in a cross, quantizer.
        title: the method's name as in print.
        control: whether the method is a floor or ceiling.
        quantizer: the quantizer's name, with its recipe.
        cross: whether the quantizer is another than the method's own.
        recipe: named parameter values of the quantizer; null: none.
        params: parameters of `method` and `quantizer`.
        changed_params: those that are not the defaults, such as `method.lr`.
        versions: of the code.
        fidelity: how closely the method follows its authors.
        target: data set with networks.
        model: the network.
        scheme: what is quantized.
        budget: named length of schedules.
        precision: how the training loops compute.
        seed: of the cell.
        threads: CPU threads.
        device: torch device.
        dataset: the evaluation set.
        preprocessing: of evaluation images.
        selection: which state is evaluated: `last`.
        together_with: other cells of the same worker.
        student_from: attempt whose student was evaluated; null: this one's.
        oracle: best snapshot, chosen on the evaluation set; null: none.
        oracle_asked: number of snapshots asked for.
        curve: every snapshot, by step; null: none.
        environment: identity of the file that describes it.
        revision: git revision of dfqbench; null: not a checkout.
        error: null: none.
        seconds: where the time went.
        reused_from: source that another cell made; null: this one's.
        source_kind: `fixed` or `live`; null: not known.
        source_images: images that the source holds or gave.
        counts: cost that does not depend on hardware.
        peak_mib: peak memory.
        real_data_opened: files of real data that plugin code opened.
        wrote_outside: files that plugin code wrote outside its folder.
        resumed: times that the attempt went on from a checkpoint.
        fp_top1: full-precision top-1 in percent.
        top1: in percent, of the last state.
        top5: in percent.
        drop: fp_top1 - top1.
        top1_se: binomial standard error of top1, in percentage points.
        agreement: images on which student and teacher agree, in percent.
        correct: whether each image is right: base64 of bits, the first image in the highest.
        coverage: what is quantized; null: not measured.
        levels_ok: whether every group has at most 2^bits levels; null: not measured.
        violations: claimed operands that are off their quantization levels.
        warnings: of the worker and the host.
        diagnostics: of the kept images.
    """

    model_config = ConfigDict(json_schema_extra={"required": list(_REQUIRED)})

    schema_number: int = Field(default=0, alias="schema")
    run: str = ""
    source_id: str = ""
    student_id: str = ""
    cell_id: str = ""
    attempt: int = 0
    status: str = ""
    flags: list[str] = Field(default_factory=list)
    started_at: str = ""
    finished_at: str | None = None
    method: str = ""
    label: str = ""
    title: str = ""
    control: bool = False
    quantizer: str = ""
    cross: bool = False
    recipe: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    changed_params: list[str] = Field(default_factory=list)
    versions: Versions = Field(default_factory=Versions)
    fidelity: str = ""
    target: str = ""
    model: Model = Field(default_factory=Model)
    scheme: SchemeFacts = Field(default_factory=SchemeFacts)
    budget: str = ""
    precision: str = ""
    seed: int | None = None
    threads: int | None = None
    device: str = ""
    dataset: Dataset = Field(default_factory=Dataset)
    preprocessing: Preprocessing = Field(default_factory=Preprocessing)
    selection: str = ""
    together_with: list[str] = Field(default_factory=list)
    student_from: Origin | None = None
    oracle: Snapshot | None = None
    oracle_asked: int = 0
    curve: list[Snapshot] | None = None
    environment: str = ""
    revision: str | None = None
    error: Error | None = None
    seconds: Seconds = Field(default_factory=Seconds)
    reused_from: str | None = None
    source_kind: str | None = None
    source_images: int | None = None
    counts: Counts = Field(default_factory=Counts)
    peak_mib: PeakMemory = Field(default_factory=PeakMemory)
    real_data_opened: list[str] = Field(default_factory=list)
    wrote_outside: list[str] = Field(default_factory=list)
    resumed: int = 0
    fp_top1: float | None = None
    top1: float | None = None
    top5: float | None = None
    drop: float | None = None
    top1_se: float | None = None
    agreement: float | None = None
    correct: str | None = None
    coverage: Coverage | None = None
    levels_ok: bool | None = None
    violations: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    diagnostics: Diagnostics = Field(default_factory=Diagnostics)

    @classmethod
    def from_json(cls, content: bytes) -> Record:
        """Read the content of a record's file.

        Raises:
            ValueError: it is no JSON object, or a key that decides how it is read is missing or of another type.
        """
        try:
            record = cls.model_validate_json(content)
        except ValidationError:
            data = json.loads(content)
            _check(_upgraded(data))
            return cls.from_data(data)
        if not {"schema_number", "cell_id", "status"} <= record.model_fields_set:
            raise ValueError("a required key is missing")
        return record

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Record:
        """Read JSON data of any schema.

        A value of another type than the schema's reads as a missing one, and is kept for `as_dict`.
        """
        known = copy.deepcopy(_upgraded(data))
        changed = {key for key in data if known[key] != data[key]}
        try:
            record = _Mended.model_validate(known)
        except ValidationError as error:
            for entry in reversed(error.errors(include_url=False)):
                changed.add(str(entry["loc"][0]))
                _remove(known, entry["loc"])
            record = _Mended.model_validate(known)
        record._unread = {key: data[key] for key in changed}
        return record

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON data: every key that was read or set, in the order of the schema."""
        # What workers report is written as it comes: a plugin's mistake must not cost the record.
        return self.model_dump(by_alias=True, exclude_unset=True, warnings=False)


class _Mended(Record):
    """A record that may hold values of other types than the schema's, as they were read."""

    _unread: dict[str, Any] = PrivateAttr(default_factory=dict)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a value; what was unreadable in its place is given up."""
        super().__setattr__(name, value)
        self._unread.pop(name, None)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON data, with the values that could not be read."""
        return super().as_dict() | self._unread


def _upgraded(data: Any) -> Any:
    """Return data of an older schema in the form of this one; anything else as it is."""
    if not isinstance(data, Mapping):
        return data
    return {**data} | {key: {name: data[key]} for key, name in _PLAIN.items() if isinstance(data.get(key), str)}


def _check(data: Any) -> None:
    """Check the keys that decide how a record is read.

    Raises:
        ValueError: one is missing or of another type, or there are none.
    """
    kinds = _REQUIRED | dict.fromkeys(_OBJECTS, dict | None) | dict.fromkeys(_NUMBERS, int | float | None)
    readable = isinstance(data, dict) and all(isinstance(data.get(key), kind) for key, kind in kinds.items())
    if not readable or not all(isinstance(n, int | float | None) for n in (data.get("seconds") or {}).values()):
        raise ValueError("a key that decides how a record is read is missing or of another type")


def _remove(data: Any, location: tuple[int | str, ...]) -> None:
    """Remove the value at a location in nested data."""
    for key in location[:-1]:
        data = data[key]
    del data[location[-1]]
