"""The record of an attempt: one JSON object with a type.

`python -m dfqbench.run.store.record` prints the JSON schema that `docs/reference/record.schema.json` holds.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ConfigDict, Field, PrivateAttr, ValidationError

from dfqbench.run.store.files import TRACEBACK, shortened, valid
from dfqbench.run.store.record_parts import (
    Counts,
    Coverage,
    CpuSeconds,
    Dataset,
    Diagnostics,
    Error,
    Model,
    Origin,
    PeakMemory,
    Preprocessing,
    RecordPart,
    SchemeFacts,
    Seconds,
    Snapshot,
    Versions,
)

SCHEMA = 2
"""Number of the record's schema; older numbers stay readable, newer ones are refused."""
_REQUIRED = {"schema": int, "cell_id": str, "status": str}
_OBJECTS = ("seconds", "error", "model", "scheme", "dataset", "params", "coverage", "counts", "peak_mib")
_NUMBERS = ("top1", "fp_top1", "drop", "top1_se", "agreement", "seed", "attempt")
_ONCE_STRINGS = {"model": "name", "scheme": "label"}
"""Objects that were plain strings before schema 1, with the key that holds the string now."""
_DIGITS = bytes(ord("0") if chr(byte).isdecimal() and byte < 128 else byte for byte in range(256))
"""Table that turns every digit into 0: ten times as fast as a regular expression."""
_MOST_DIGITS = 21
"""Most digits in a row of a float's shortest text; an integer with more is none of a record."""


class NewerSchemaError(ValueError):
    """The record is of a newer schema than this version knows."""


class Record(RecordPart):
    """One attempt at one cell."""

    model_config = ConfigDict(json_schema_extra={"required": list(_REQUIRED)})

    schema_number: int = Field(default=0, alias="schema", description="number of this schema")
    run: str = Field(default="", description="the run's name")
    source_id: str = Field(default="", description="identity of the source")
    student_id: str = Field(default="", description="identity of the student; holds that of the source")
    cell_id: str = Field(default="", description="identity of the cell; holds that of the student")
    attempt: int = Field(default=0, description="number of the attempt, from 1")
    status: str = Field(default="", description="how it ended, such as `ok` or `failed`")
    flags: list[str] = Field(default_factory=list, description="what restricts result or times, such as `cpu_shared`")
    started_at: str = Field(default="", description="ISO time")
    finished_at: str | None = Field(default=None, description="ISO time; null: not finished")
    method: str = Field(default="", description="the method's name")
    label: str = Field(default="", description="method and, in a cross, quantizer")
    title: str = Field(default="", description="the method's name as in print")
    paper: str = Field(default="", description="citation of the method")
    link: str = Field(default="", description="web address of the paper")
    control: bool = Field(default=False, description="whether the method is a control, such as noise or real")
    quantizer: str = Field(default="", description="the quantizer's name")
    cross: bool = Field(default=False, description="whether the quantizer is another than the method's own")
    own_quantize: bool = Field(default=False, description="whether the method's own `quantize` made the student")
    recipe: str | None = Field(default=None, description="named parameter values of the quantizer; null: none")
    recipe_changes: list[str] = Field(default_factory=list, description="parameters whose values are not the recipe's")
    range: str = Field(default="", description="range rule of the activations; empty: the quantizer has none")
    params: dict[str, Any] = Field(default_factory=dict, description="parameters of `method` and `quantizer`")
    changed_params: list[str] = Field(default_factory=list, description="other than the defaults, such as `method.lr`")
    versions: Versions = Field(default_factory=Versions, description="of the code")
    fidelity: str = Field(default="", description="how closely the method follows its authors")
    target: str = Field(default="", description="data set with networks")
    model: Model = Field(default_factory=Model, description="the network")
    scheme: SchemeFacts = Field(default_factory=SchemeFacts, description="what is quantized")
    budget: str = Field(default="", description="named length of schedules")
    precision: str = Field(default="", description="how the training loops compute")
    seed: int | None = Field(default=None, description="of the cell")
    threads: int | None = Field(default=None, description="CPU threads")
    device: str = Field(default="", description="torch device")
    dataset: Dataset = Field(default_factory=Dataset, description="the evaluation set")
    preprocessing: Preprocessing = Field(default_factory=Preprocessing, description="of evaluation images")
    selection: str = Field(default="", description="which state is evaluated: `last`")
    together_with: list[str] = Field(default_factory=list, description="other cells of the same worker")
    student_from: Origin | None = Field(default=None, description="where its student was trained; null: here")
    oracle: Snapshot | None = Field(default=None, description="best snapshot, chosen on the evaluation set; null: none")
    oracle_asked: int = Field(default=0, description="number of snapshots asked for")
    curve: list[Snapshot] | None = Field(default=None, description="every snapshot, by step; null: none")
    environment: str = Field(default="", description="identity of the file that describes it")
    revision: str | None = Field(default=None, description="git revision of dfqbench; null: not a checkout")
    error: Error | None = Field(default=None, description="null: none")
    seconds: Seconds = Field(default_factory=Seconds, description="where the time went")
    cpu_seconds: CpuSeconds = Field(default_factory=CpuSeconds, description="time that does not count waiting")
    reused_from: str | None = Field(default=None, description="source that another cell made; null: this one's")
    source_kind: str | None = Field(default=None, description="`fixed` or `live`; null: not known")
    source_images: int | None = Field(default=None, description="images that the source holds or gave")
    used_images: int | None = Field(default=None, description="different images that the quantizer drew, at most")
    counts: Counts = Field(default_factory=Counts, description="cost that does not depend on hardware")
    peak_mib: PeakMemory = Field(default_factory=PeakMemory, description="peak memory")
    real_data_opened: list[str] = Field(default_factory=list, description="files of real data that plugin code opened")
    wrote_outside: list[str] = Field(default_factory=list, description="files that plugin code wrote elsewhere")
    foreign_calls: list[str] = Field(default_factory=list, description="processes and libraries plugin code started")
    protection: str = Field(default="", description="`landlock`, or `audit hook` and why; empty: not recorded")
    resumed: int = Field(default=0, description="times that the attempt went on from a checkpoint")
    fp_top1: float | None = Field(default=None, description="full-precision top-1 in percent")
    top1: float | None = Field(default=None, description="in percent, of the last state")
    top5: float | None = Field(default=None, description="in percent")
    drop: float | None = Field(default=None, description="fp_top1 - top1")
    top1_se: float | None = Field(default=None, description="binomial standard error of top1, in percentage points")
    agreement: float | None = Field(default=None, description="images on which student and teacher agree, in percent")
    correct: str | None = Field(default=None, description="a bit an image, base64, the first image in the highest bit")
    coverage: Coverage | None = Field(default=None, description="what is quantized; null: not measured")
    levels_ok: bool | None = Field(default=None, description="at most 2^bits levels a group; null: not measured")
    violations: list[str] = Field(default_factory=list, description="operands off their quantization levels")
    warnings: list[str] = Field(default_factory=list, description="of the worker and the host")
    diagnostics: Diagnostics = Field(default_factory=Diagnostics, description="of the kept images")

    @classmethod
    def from_json(cls, content: bytes) -> Record:
        """Read the content of a record's file.

        Raises:
            NewerSchemaError: it is of a newer schema.
            ValueError: it is no JSON object, or a key that decides how it is read is missing or of another type.
            RecursionError: it is nested too deep.
        """
        try:
            if b"0" * (_MOST_DIGITS + 1) in content.translate(_DIGITS):
                return cls._mended(content)
            record = cls.model_validate_json(content)
        except ValidationError as error:
            if "recursion" in error.errors(include_url=False)[0]["msg"]:
                raise RecursionError("the record is nested too deep") from error
            return cls._mended(content)
        if not {"schema_number", "cell_id", "status"} <= record.model_fields_set:
            raise ValueError("a required key is missing")
        _refuse_newer(record.schema_number)
        return record

    @classmethod
    def _mended(cls, content: bytes) -> Record:
        """Read a record that may hold values of other types; a number of too many digits becomes text."""
        data = valid(json.loads(content, parse_int=lambda text: int(text) if len(text) <= _MOST_DIGITS else text))
        _refuse_newer(data.get("schema") if isinstance(data, dict) else None)
        _check(_upgraded(data))
        return cls.from_data(data)

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

    def close(self, status: str, error: Error | None = None) -> None:
        """Set how the attempt ended, and that it ends now; a long message or traceback is shortened."""
        if error is not None:
            error.type, error.message = shortened(str(error.type)), shortened(str(error.message))
            error.traceback = shortened(error.traceback, TRACEBACK) if error.traceback else error.traceback
        self.status = status
        self.error = error
        self.finished_at = now()

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


def now() -> str:
    """Return the present time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _upgraded(data: Any) -> Any:
    """Return data of an older schema in the form of this one; anything else as it is."""
    if not isinstance(data, Mapping):
        return data
    return {**data} | {key: {name: data[key]} for key, name in _ONCE_STRINGS.items() if isinstance(data.get(key), str)}


def _check(data: Any) -> None:
    """Check the keys that decide how a record is read.

    Raises:
        ValueError: one is missing or of another type, or there are none.
    """
    kinds = _REQUIRED | dict.fromkeys(_OBJECTS, dict | None) | dict.fromkeys(_NUMBERS, int | float | None)
    readable = isinstance(data, dict) and all(isinstance(data.get(key), kind) for key, kind in kinds.items())
    if not readable or not all(isinstance(n, int | float | None) for n in (data.get("seconds") or {}).values()):
        raise ValueError("a key that decides how a record is read is missing or of another type")


def _refuse_newer(schema: Any) -> None:
    if isinstance(schema, int) and schema > SCHEMA:
        raise NewerSchemaError(f"schema {schema}, and this version of dfqbench reads up to {SCHEMA}")


def _remove(data: Any, location: tuple[int | str, ...]) -> None:
    """Remove the value at a location in nested data."""
    for key in location[:-1]:
        data = data[key]
    del data[location[-1]]


def json_schema() -> str:
    """Return the JSON schema of a record, as text."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(dialect | Record.model_json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(json_schema())
