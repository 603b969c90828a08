"""The objects in a record, one class for each."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    """An object in a record: a missing key has its neutral default, and an unknown key is kept."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())


class Versions(Part):
    """Distributions with versions, such as `dfqbench 0.1.0`.

    Attributes:
        method: distribution of the method.
        quantizer: distribution of the quantizer.
    """

    method: str = ""
    quantizer: str = ""


class Model(Part):
    """The network.

    Attributes:
        name: as users name it.
        ref: reference of architecture and weights; null: not available.
        weights_sha256: hash of the weights' file; null: not known.
        params: number of parameters; null: not measured.
    """

    name: str = ""
    ref: str | None = None
    weights_sha256: str | None = None
    params: int | None = None


class SchemeFacts(Part):
    """What is quantized, and how.

    Attributes:
        label: bits @ protocol, such as `w4a4@gdfq`.
        w_bits: bits of weights.
        a_bits: bits of activations.
        protocol: the protocol's name.
        details: every choice of the protocol.
    """

    label: str = ""
    w_bits: int | None = None
    a_bits: int | None = None
    protocol: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


class Dataset(Part):
    """The evaluation set.

    Attributes:
        name: its name.
        subset_of: data set that it is a part of; null: none.
        n: images evaluated; null: it was not read.
        subset: which part was evaluated, in words; null: all of it.
        sha256: hash of the data; null: not available.
    """

    name: str = ""
    subset_of: str | None = None
    n: int | None = None
    subset: str | None = None
    sha256: str | None = None


class Card(Part):
    """The network's input.

    Attributes:
        input_size: channels, height, width.
        mean: of each channel, in [0, 1].
        std: standard deviation of each channel.
        classes: number of classes.
        stats: mean and standard deviation of the domain's images; null: those of the card.
    """

    input_size: list[int] = Field(default_factory=list)
    mean: list[float] = Field(default_factory=list)
    std: list[float] = Field(default_factory=list)
    classes: int | None = None
    stats: dict[str, list[float]] | None = None


class Preprocessing(Part):
    """How evaluation images become the network's input.

    Attributes:
        resize: shorter side in pixels before the crop; 0: no resize; null: crop / 0.875.
        crop: side of the centre crop in pixels; null: the network's input size.
        card: the network's input; null: the network is not available.
    """

    resize: int | None = None
    crop: int | None = None
    card: Card | None = None


class Origin(Part):
    """The attempt that trained a student.

    Attributes:
        cell_id: its cell.
        attempt: its number.
    """

    cell_id: str = ""
    attempt: int = 0


class Snapshot(Part):
    """A state of the student during its training.

    Attributes:
        step: of the training.
        top1: in percent.
    """

    step: int | None = None
    top1: float | None = None


class Error(Part):
    """Why there is no result, or none that counts.

    Attributes:
        type: class of the exception, or a word of the host.
        message: one line.
        phase: in which it happened.
        step: of the phase.
        plugin: whose code it happened in.
        traceback: of the exception; empty: none.
        traceback_file: name of the file beside the record that holds the traceback.
    """

    type: str = ""
    message: str = ""
    phase: str | None = None
    step: int | None = None
    plugin: str | None = None
    traceback: str | None = None
    traceback_file: str | None = None


class Seconds(Part):
    """Where the wall time went: setup + paid_synthesis + quantization + evaluation + unattributed = wall.

    Attributes:
        setup: until the method begins.
        synthesis: stand-alone cost of the source, paid by whichever cell made it.
        quantization: outside the source's calls.
        evaluation: of the student.
        paid_synthesis: inside the source's calls, in this attempt.
        unattributed: what is left of the wall time.
        wall: of the attempt.
    """

    setup: float | None = None
    synthesis: float | None = None
    quantization: float | None = None
    evaluation: float | None = None
    paid_synthesis: float | None = None
    unattributed: float | None = None
    wall: float | None = None


class Counts(Part):
    """Cost that does not depend on hardware, that of a shared source included.

    Attributes:
        images: images that the source gave.
        source_steps: steps in which the source learned.
        teacher_images: images that went through the teacher.
        student_images: images that went through the student.
        optimizer_steps: steps of optimizers.
    """

    images: int | None = None
    source_steps: int | None = None
    teacher_images: int | None = None
    student_images: int | None = None
    optimizer_steps: int | None = None


class PeakMemory(Part):
    """Peak memory of each phase in MiB.

    Attributes:
        synthesis: of the source, also where another cell made it.
        quantization: of the quantizer.
        evaluation: of the evaluator.
    """

    synthesis: float | None = None
    quantization: float | None = None
    evaluation: float | None = None

    @property
    def largest(self) -> float:
        """The largest of the three; 0 where none is known."""
        return max(self.synthesis or 0.0, self.quantization or 0.0, self.evaluation or 0.0)


class Coverage(Part):
    """What is quantized, measured on the student.

    Attributes:
        macs_quantized: multiply-accumulates an image with both operands quantized.
        macs_total: all multiply-accumulates an image.
        float_layers: layers with an operand in float, each with the operand.
    """

    macs_quantized: int | None = None
    macs_total: int | None = None
    float_layers: list[str] = Field(default_factory=list)


class LayerDistance(Part):
    """Distance of the images' statistics to those of a BatchNorm layer.

    Attributes:
        name: of the layer.
        bns: distance as the BatchNorm loss measures it.
        mean_gap: distance of means, in standard deviations.
        std_gap: distance of standard deviations.
    """

    name: str = ""
    bns: float | None = None
    mean_gap: float | None = None
    std_gap: float | None = None


class TrainingPoint(Part):
    """Images at a point of the source's training.

    Attributes:
        step: of the training.
        confidence: mean probability of the teacher's answers.
        homogeneity: mean cosine similarity of features.
    """

    step: int | None = None
    confidence: float | None = None
    homogeneity: float | None = None


class Diagnostics(Part):
    """What `dfqbench diagnose` measured on the kept images; percent where named accuracy, else as `--value` explains.

    Attributes:
        version: of what is measured; null: not diagnosed.
        images: images measured.
        classes_of: `labels` of the source, or `teacher`: its answers.
        confidence: mean probability of the teacher's answers.
        answers: the teacher's answer to each image.
        confidences: the probability of each answer.
        label_accuracy: images to which the teacher gives their label.
        label_confidence: mean probability of the labels.
        bns: distance to BatchNorm statistics, mean over layers.
        layers: the same of each layer.
        silhouette: of penultimate features.
        margin: of the classes' centres.
        homogeneity: mean cosine similarity of penultimate features.
        attention_spread: of attention centres within a class.
        attention_consistency: distance of attention maps between BatchNorm's modes.
        over_training: the images at points of the training.
        speed: ZeroQ's seconds an image over this method's.
    """

    version: int | None = None
    images: int | None = None
    classes_of: str = ""
    confidence: float | None = None
    answers: list[int] = Field(default_factory=list)
    confidences: list[float] = Field(default_factory=list)
    label_accuracy: float | None = None
    label_confidence: float | None = None
    bns: float | None = None
    layers: list[LayerDistance] = Field(default_factory=list)
    silhouette: float | None = None
    margin: float | None = None
    homogeneity: float | None = None
    attention_spread: float | None = None
    attention_consistency: float | None = None
    over_training: list[TrainingPoint] = Field(default_factory=list)
    speed: float | None = None
