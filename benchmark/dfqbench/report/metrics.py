"""Metrics: the numbers that a table can show, by the names that users type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Literal

from dfqbench.api.errors import UsageError, unknown_name
from dfqbench.report.formatting import count, decimals, duration
from dfqbench.run.store.record import Record

Better = Literal["higher", "lower", ""]
Read = Callable[[Record], float | None]


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that a table can show."""

    name: str  # what users type
    header: str  # over its column
    read: Read  # returns None where the record lacks it
    show: Callable[[float], str]
    better: Better = ""  # empty: no value is marked as the best
    about: str = ""  # its explanation in the caption
    spread: bool = False  # whether every column shows the deviation over seeds (the first one always does)
    percent: bool = False
    diagnosed: bool = False  # whether `dfqbench diagnose` measures it


DEFAULT_METRICS = ("top1", "drop", "synthesis")


def chosen_metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """Return metrics by name.

    Raises:
        UsageError: a name is unknown, or there is none.
    """
    if not names:
        raise UsageError("no value is named", f"write for example --value {','.join(DEFAULT_METRICS)}")
    for name in names:
        if name not in METRICS:
            raise unknown_name("value", name, METRICS)
    return tuple(METRICS[name] for name in dict.fromkeys(names))


def drop(record: Record) -> float | None:
    """Return percentage points below full precision; computed where the record does not hold it."""
    if record.drop is not None or record.fp_top1 is None or record.top1 is None:
        return record.drop
    return record.fp_top1 - record.top1


def coverage(record: Record) -> float | None:
    """Return the share of multiply-accumulates that are quantized, in percent."""
    known = record.coverage
    if known is None or known.macs_quantized is None or not known.macs_total:
        return None
    return 100 * known.macs_quantized / known.macs_total


def total_seconds(record: Record) -> float | None:
    """Return the seconds of stand-alone synthesis and quantization."""
    synthesis, quantization = record.seconds.synthesis, record.seconds.quantization
    return None if synthesis is None or quantization is None else synthesis + quantization


def peak(record: Record) -> float | None:
    """Return peak memory over synthesis and quantization in MiB; evaluation is not the method's."""
    known = (record.peak_mib.synthesis, record.peak_mib.quantization)
    return max((mib for mib in known if mib is not None), default=None)


def seconds_per_image(record: Record) -> float | None:
    """Return the seconds of stand-alone synthesis per image.

    Images of a fixed source are those that it holds; of a live one those that it handed out.
    """
    seconds, images = record.seconds.synthesis, record.source_images
    return None if seconds is None or not images else seconds / images


def _oracle(record: Record) -> float | None:
    return None if record.oracle is None else record.oracle.top1


_percent = partial(Metric, show=decimals(2), percent=True)


def _seconds(name: str, about: str, read: Read | None = None) -> Metric:
    return Metric(name, name, read or attrgetter(f"seconds.{name}"), duration, "lower", about)


def _count(name: str, key: str, about: str) -> Metric:
    return Metric(name, name, attrgetter(f"counts.{key}"), count, "lower", about)


def _diagnosed(name: str, header: str, about: str, digits: int = 3) -> Metric:
    read = attrgetter(f"diagnostics.{name}")
    return Metric(name, header, read, decimals(digits), about=about, spread=True, diagnosed=True)


_ORACLE = (
    "top-1 of the best snapshot, chosen on the evaluation set; no result, what papers that print the best epoch are "
    "held against"
)
_AGREEMENT = "images on which student and teacher give the same answer"
_PER_IMAGE = "synthesis for each image that the source made"
_ALL = (
    _percent("top1", "top-1", attrgetter("top1"), better="higher", spread=True),
    _percent("top5", "top-5", attrgetter("top5"), better="higher", spread=True),
    _percent("drop", "drop", drop, better="lower"),
    _percent("oracle", "oracle", _oracle, about=_ORACLE, spread=True),
    _percent("agreement", "agreement", attrgetter("agreement"), better="higher", about=_AGREEMENT, spread=True),
    _percent("fp_top1", "full", attrgetter("fp_top1"), about="top-1 of the teacher"),
    _percent("coverage", "coverage", coverage, show=decimals(1), about="multiply-accumulates quantized"),
    _seconds("synthesis", "time of a stand-alone synthesis"),
    _seconds("quantization", "time outside the source's calls"),
    _seconds("total", "stand-alone synthesis and quantization", total_seconds),
    _seconds("setup", "time until the method begins"),
    _seconds("evaluation", "time of the evaluator"),
    _seconds("wall", "the whole attempt; a source that was shared is not in it"),
    Metric("peak", "peak MiB", peak, decimals(0), "lower", "memory in synthesis or quantization"),
    _count("teacher", "teacher_images", "images that went through the teacher"),
    _count("student", "student_images", "images that went through the student"),
    _count("steps", "optimizer_steps", "optimizer steps"),
    Metric("per_image", "s/image", seconds_per_image, lambda seconds: f"{seconds:.3g} s", "lower", _PER_IMAGE),
    _diagnosed("bns", "BNS", "distance of the images' batch statistics to the BatchNorm layers', mean over layers"),
    _diagnosed("silhouette", "silhouette", "of penultimate features, by class, -1 to 1"),
    _diagnosed("margin", "margin", "class centres of penultimate features, -1 to 1"),
    _diagnosed("attention_spread", "spread", "of attention centres within a class; the image's side is 2"),
    _diagnosed("attention_consistency", "train/eval", "distance of attention maps between BatchNorm's modes, 0 to 2"),
    _diagnosed("homogeneity", "homogeneity", "mean cosine similarity of penultimate features, 1: all alike"),
    _diagnosed("label_accuracy", "labels", "images that the teacher gives their label, in percent", digits=1),
    _diagnosed("confidence", "confidence", "the teacher's probability of its answer, mean"),
    _diagnosed("speed", "speed", "ZeroQ's seconds an image over this method's, same network and budget", digits=2),
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
