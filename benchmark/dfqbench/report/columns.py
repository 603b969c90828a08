"""Values of a table by name: where they are in a record, how they print, and which way is better."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dfqbench.api.errors import UsageError, unknown_name
from dfqbench.report.values import duration
from dfqbench.run.store.record import Diagnostics, Record

Better = Literal["higher", "lower", ""]
Read = Callable[[Record], float | None]


@dataclass(frozen=True, slots=True)
class Value:
    """One kind of number that a table can show.

    Attributes:
        name: what users type.
        header: over its column.
        read: gets it from a record; None where it is missing.
        show: prints it.
        better: which way is better; empty: neither, and none is marked.
        about: what the caption says of it.
        spread: whether seeds show their deviation in every column (the first column of a place always does).
        digits: decimal places of the deviation.
        percent: whether it is in percent.
        diagnosed: whether `dfqbench diagnose` measures it.
    """

    name: str
    header: str
    read: Read
    show: Callable[[float], str]
    better: Better = ""
    about: str = ""
    spread: bool = False
    digits: int = 2
    percent: bool = False
    diagnosed: bool = False


DEFAULT_VALUES = ("top1", "drop", "synthesis")


def chosen_values(names: Sequence[str]) -> tuple[Value, ...]:
    """Looks values up.

    Raises:
        UsageError: a name is unknown, or there is none.
    """
    if not names:
        raise UsageError("no value is named", f"write for example --value {','.join(DEFAULT_VALUES)}")
    for name in names:
        if name not in VALUES:
            raise unknown_name("value", name, VALUES)
    return tuple(VALUES[name] for name in dict.fromkeys(names))


def drop(record: Record) -> float | None:
    """Percent points below full precision; computed where the record does not hold it."""
    if record.drop is not None or record.fp_top1 is None or record.top1 is None:
        return record.drop
    return record.fp_top1 - record.top1


def coverage(record: Record) -> float | None:
    """Share of multiply-accumulates that are quantized, in percent."""
    found = record.coverage
    if found is None or found.macs_quantized is None or not found.macs_total:
        return None
    return 100 * found.macs_quantized / found.macs_total


def total_seconds(record: Record) -> float | None:
    """What the student costs alone: stand-alone synthesis and quantization, in seconds."""
    synthesis, quantization = record.seconds.synthesis, record.seconds.quantization
    return None if synthesis is None or quantization is None else synthesis + quantization


def peak(record: Record) -> float | None:
    """Peak memory over synthesis and quantization in MiB; evaluation is not the method's."""
    known = (record.peak_mib.synthesis, record.peak_mib.quantization)
    return max((entry for entry in known if entry is not None), default=None)


def seconds_per_image(record: Record) -> float | None:
    """Stand-alone synthesis over the images that it made, in seconds.

    Images of a fixed source are those that it holds; of a live one those that it handed out.
    """
    seconds, images = record.seconds.synthesis, record.source_images
    return None if seconds is None or not images else seconds / images


def _decimals(digits: int) -> Callable[[float], str]:
    return lambda entry: f"{entry:.{digits}f}"


def count(entry: float) -> str:
    """A count for people: `950`, `12.8 k`, `1.6 M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if entry >= size:
            return f"{entry / (1e3 if unit == 'k' else size):.1f} {unit}"
    return f"{entry:.0f}"


def _percent(name: str, header: str, read: Read, better: Better = "higher", about: str = "") -> Value:
    return Value(name, header, read, _decimals(2), better, about, spread=True, percent=True)


def _time(name: str, read: Read, about: str) -> Value:
    return Value(name, name, read, duration, "lower", about)


def _count(name: str, read: Read, about: str) -> Value:
    return Value(name, name, read, count, "lower", about)


def _diagnosed(
    name: str, header: str, read: Callable[[Diagnostics], float | None], about: str, digits: int = 3
) -> Value:
    return Value(
        name,
        header,
        lambda record: read(record.diagnostics),
        _decimals(digits),
        about=about,
        spread=True,
        digits=digits,
        diagnosed=True,
    )


_LIST = (
    _percent("top1", "top-1", lambda record: record.top1),
    _percent("top5", "top-5", lambda record: record.top5),
    Value("drop", "drop", drop, _decimals(2), "lower", percent=True),
    Value(
        "oracle",
        "oracle",
        lambda record: record.oracle.top1 if record.oracle is not None else None,
        _decimals(2),
        "",
        "oracle: top-1 of the best snapshot, chosen on the evaluation set; no result, what papers that print the best "
        "epoch are held against",
        spread=True,
        percent=True,
    ),
    _percent(
        "agreement",
        "agreement",
        lambda record: record.agreement,
        about="agreement: images on which student and teacher give the same answer",
    ),
    Value(
        "fp_top1",
        "full",
        lambda record: record.fp_top1,
        _decimals(2),
        about="full: top-1 of the teacher",
        percent=True,
    ),
    Value(
        "coverage", "coverage", coverage, _decimals(1), about="coverage: multiply-accumulates quantized", percent=True
    ),
    _time("synthesis", lambda record: record.seconds.synthesis, "synthesis: time of a stand-alone synthesis"),
    _time("quantization", lambda record: record.seconds.quantization, "quantization: time outside the source's calls"),
    _time("total", total_seconds, "total: stand-alone synthesis and quantization"),
    _time("setup", lambda record: record.seconds.setup, "setup: time until the method begins"),
    _time("evaluation", lambda record: record.seconds.evaluation, "evaluation: time of the evaluator"),
    _time("wall", lambda record: record.seconds.wall, "wall: the whole attempt; a source that was shared is not in it"),
    Value("peak", "peak MiB", peak, _decimals(0), "lower", "peak MiB: memory in synthesis or quantization", digits=0),
    _count("teacher", lambda record: record.counts.teacher_images, "teacher: images that went through the teacher"),
    _count("student", lambda record: record.counts.student_images, "student: images that went through the student"),
    _count("steps", lambda record: record.counts.optimizer_steps, "steps: optimizer steps"),
    Value(
        "per_image",
        "s/image",
        seconds_per_image,
        lambda entry: f"{entry:.3g} s",
        "lower",
        "s/image: synthesis for each image that the source made",
    ),
    _diagnosed(
        "bns",
        "BNS",
        lambda found: found.bns,
        "BNS: distance of the images' batch statistics to the BatchNorm layers', mean over layers",
    ),
    _diagnosed(
        "silhouette",
        "silhouette",
        lambda found: found.silhouette,
        "silhouette: of penultimate features, by class, -1 to 1",
    ),
    _diagnosed(
        "margin", "margin", lambda found: found.margin, "margin: class centres of penultimate features, -1 to 1"
    ),
    _diagnosed(
        "attention_spread",
        "spread",
        lambda found: found.attention_spread,
        "spread: of attention centres within a class; the image's side is 2",
    ),
    _diagnosed(
        "attention_consistency",
        "train/eval",
        lambda found: found.attention_consistency,
        "train/eval: distance of attention maps between BatchNorm's modes, 0 to 2",
    ),
    _diagnosed(
        "homogeneity",
        "homogeneity",
        lambda found: found.homogeneity,
        "homogeneity: mean cosine similarity of penultimate features, 1: all alike",
    ),
    _diagnosed(
        "label_accuracy",
        "labels",
        lambda found: found.label_accuracy,
        "labels: images that the teacher gives their label, in percent",
        digits=1,
    ),
    _diagnosed(
        "confidence",
        "confidence",
        lambda found: found.confidence,
        "confidence: the teacher's probability of its answer, mean",
    ),
    _diagnosed(
        "speed",
        "speed",
        lambda found: found.speed,
        "speed: ZeroQ's seconds an image over this method's, same network and budget",
        digits=2,
    ),
)
VALUES: Mapping[str, Value] = {entry.name: entry for entry in _LIST}
"""Every value by name."""
