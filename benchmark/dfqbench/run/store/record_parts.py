"""The objects in the record of an attempt, each with the meaning of its keys."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


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
