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

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from dfqbench.run.store.files import TRACEBACK, shortened, valid

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


class RecordPart(BaseModel):
    """An object in a record: a missing key has its neutral default, and an unknown key is kept."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())


class Versions(RecordPart):
    """Distributions with versions, such as `dfqbench 0.1.0`."""

    method: str = Field(default="", description="distribution of the method")
    quantizer: str = Field(default="", description="distribution of the quantizer")


class Model(RecordPart):
    """The network."""

    name: str = Field(default="", description="as users name it")
    ref: str | None = Field(default=None, description="reference of architecture and weights; null: not available")
    weights_sha256: str | None = Field(default=None, description="hash of the weights' file; null: not known")
    params: int | None = Field(default=None, description="number of parameters; null: not measured")


class SchemeFacts(RecordPart):
    """What is quantized, and how."""

    label: str = Field(default="", description="bits @ protocol, such as `w4a4@gdfq`")
    w_bits: int | None = Field(default=None, description="bits of weights")
    a_bits: int | None = Field(default=None, description="bits of activations")
    protocol: str = Field(default="", description="the protocol's name")
    details: dict[str, Any] = Field(default_factory=dict, description="every choice of the protocol")
    mixed: dict[str, Any] | None = Field(default=None, description="budget of mixed precision and its plan; null: none")
    layers: dict[str, int] = Field(default_factory=dict, description="bits of each layer's weights in mixed precision")


class Dataset(RecordPart):
    """The evaluation set."""

    name: str = Field(default="", description="its name")
    subset_of: str | None = Field(default=None, description="data set that it is a part of; null: none")
    n: int | None = Field(default=None, description="images evaluated; null: it was not read")
    subset: str | None = Field(default=None, description="which part was evaluated, in words; null: all of it")
    sha256: str | None = Field(default=None, description="hash of the data; null: not available")


class Card(RecordPart):
    """The network's input."""

    input_size: list[int] = Field(default_factory=list, description="channels, height, width")
    mean: list[float] = Field(default_factory=list, description="of each channel, in [0, 1]")
    std: list[float] = Field(default_factory=list, description="standard deviation of each channel")
    classes: int | None = Field(default=None, description="number of classes")
    stats: dict[str, list[float]] | None = Field(default=None, description="of the domain, normalised; null: 0 and 1")


class Preprocessing(RecordPart):
    """How evaluation images become the network's input."""

    resize: int | None = Field(default=None, description="shorter side; 0: unchanged; null: crop / 0.875")
    crop: int | None = Field(default=None, description="centre crop in pixels; null: the network's input size")
    card: Card | None = Field(default=None, description="the network's input; null: the network is not available")


class Origin(RecordPart):
    """The attempt that trained a student."""

    cell_id: str = Field(default="", description="its cell")
    attempt: int = Field(default=0, description="its number")


class Snapshot(RecordPart):
    """A state of the student during its training."""

    step: int | None = Field(default=None, description="of the training")
    top1: float | None = Field(default=None, description="in percent")


class Error(RecordPart):
    """Why there is no result, or none that counts."""

    type: str = Field(default="", description="class of the exception, or a word of the host")
    message: str = Field(default="", description="one line")
    phase: str | None = Field(default=None, description="in which it happened")
    step: int | None = Field(default=None, description="of the phase")
    plugin: str | None = Field(default=None, description="whose code it happened in")
    traceback: str | None = Field(default=None, description="of the exception; empty: none")
    traceback_file: str | None = Field(default=None, description="file beside the record that holds it")


class Seconds(RecordPart):
    """Where the wall time went: setup + paid_synthesis + quantization + evaluation + unattributed = wall."""

    setup: float | None = Field(default=None, description="until the method begins")
    synthesis: float | None = Field(default=None, description="of the source alone, even where another cell made it")
    quantization: float | None = Field(default=None, description="outside the source's calls")
    evaluation: float | None = Field(default=None, description="of the student")
    paid_synthesis: float | None = Field(default=None, description="inside the source's calls, in this attempt")
    unattributed: float | None = Field(default=None, description="what is left of the wall time")
    wall: float | None = Field(default=None, description="of the attempt")


class CpuSeconds(RecordPart):
    """CPU seconds of the worker, all threads, divided as the wall time; null: not measured, as on a GPU."""

    synthesis: float | None = Field(default=None, description="of the source alone, even where another cell made it")
    quantization: float | None = Field(default=None, description="outside the source's calls")


class Counts(RecordPart):
    """Cost that does not depend on hardware, that of a shared source included."""

    images: int | None = Field(default=None, description="images that the source gave")
    sampled_images: int | None = Field(default=None, description="those given without learning")
    source_steps: int | None = Field(default=None, description="steps in which the source learned")
    teacher_images: int | None = Field(default=None, description="images that went through the teacher")
    student_images: int | None = Field(default=None, description="images that went through the student")
    optimizer_steps: int | None = Field(default=None, description="steps of optimizers")


class PeakMemory(RecordPart):
    """Peak memory of each phase in MiB."""

    synthesis: float | None = Field(default=None, description="of the source, also where another cell made it")
    quantization: float | None = Field(default=None, description="of the quantizer")
    evaluation: float | None = Field(default=None, description="of the evaluator")

    @property
    def largest(self) -> float:
        """The largest of the three; 0 where none is known."""
        return max(self.synthesis or 0.0, self.quantization or 0.0, self.evaluation or 0.0)


class Coverage(RecordPart):
    """What is quantized, measured on the student."""

    macs_quantized: int | None = Field(default=None, description="multiply-accumulates of quantized operands")
    macs_total: int | None = Field(default=None, description="all multiply-accumulates of an image")
    weight_terms: float | None = Field(default=None, description="terms of a weight, mean over multiply-accumulates")
    bit_operations: int | None = Field(
        default=None, description="multiply-accumulates x terms x bits x bits; float: 32"
    )
    float_layers: list[str] = Field(default_factory=list, description="layers with a float operand, and that operand")


class LayerDistance(RecordPart):
    """Distance of the images' statistics to those of a BatchNorm layer."""

    name: str = Field(default="", description="of the layer")
    bns: float | None = Field(default=None, description="distance as the BatchNorm loss measures it")
    mean_gap: float | None = Field(default=None, description="distance of means, in standard deviations")
    std_gap: float | None = Field(default=None, description="distance of standard deviations")


class TrainingPoint(RecordPart):
    """Images at a point of the source's training."""

    step: int | None = Field(default=None, description="of the training")
    confidence: float | None = Field(default=None, description="mean probability of the teacher's answers")
    homogeneity: float | None = Field(default=None, description="mean cosine similarity of features")


class Diagnostics(RecordPart):
    """Measurements of `dfqbench diagnose` on the kept images; accuracies in percent, others as `--value` explains."""

    version: int | None = Field(default=None, description="of what is measured; null: not diagnosed")
    images: int | None = Field(default=None, description="images measured")
    classes_of: str = Field(default="", description="`labels` of the source, or `teacher`: its answers")
    confidence: float | None = Field(default=None, description="mean probability of the teacher's answers")
    answers: list[int] = Field(default_factory=list, description="the teacher's answer to each image")
    confidences: list[float] = Field(default_factory=list, description="the probability of each answer")
    label_accuracy: float | None = Field(default=None, description="images to which the teacher gives their label")
    label_confidence: float | None = Field(default=None, description="mean probability of the labels")
    bns: float | None = Field(default=None, description="distance to BatchNorm statistics, mean over layers")
    layers: list[LayerDistance] = Field(default_factory=list, description="the same of each layer")
    silhouette: float | None = Field(default=None, description="of penultimate features")
    margin: float | None = Field(default=None, description="of the classes' centres")
    homogeneity: float | None = Field(default=None, description="mean cosine similarity of penultimate features")
    attention_spread: float | None = Field(default=None, description="of attention centres within a class")
    attention_consistency: float | None = Field(default=None, description="of attention maps in BatchNorm's modes")
    over_training: list[TrainingPoint] = Field(default_factory=list, description="the images at points of the training")


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
