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
from dfqbench.run.store.record_parts import CpuSeconds, Seconds
from dfqbench.run.store.status import CPU_SHARED

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
    of_images: bool = False  # whether it is a share of the evaluation images, with a binomial error
    tested: bool = False  # whether the best is marked by the paired test of the answers, not by the number printed
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


def weight_terms(record: Record) -> float | None:
    """Return the quantized terms that a weight is the sum of, mean over multiply-accumulates."""
    return None if record.coverage is None else record.coverage.weight_terms


def bit_operations(record: Record) -> float | None:
    """Return multiply-accumulates of an image, each times the bits of both operands and the terms of its weight."""
    return None if record.coverage is None else record.coverage.bit_operations


def in_cpu_seconds(record: Record) -> bool:
    """Return whether tables and plots show CPU seconds: of a cell with one thread that ran beside others on the CPU."""
    spent = record.cpu_seconds
    measured = spent.synthesis is not None and spent.quantization is not None
    return measured and record.threads == 1 and CPU_SHARED in record.flags


def shown_seconds(record: Record) -> Seconds | CpuSeconds:
    """Return the seconds of synthesis and quantization that tables and plots show."""
    return record.cpu_seconds if in_cpu_seconds(record) else record.seconds


def total(spent: Seconds | CpuSeconds) -> float | None:
    """Return the seconds of stand-alone synthesis and quantization."""
    synthesis, quantization = spent.synthesis, spent.quantization
    return None if synthesis is None or quantization is None else synthesis + quantization


def total_seconds(record: Record) -> float | None:
    """Return the `total` of the seconds that tables and plots show."""
    return total(shown_seconds(record))


def peak(record: Record) -> float | None:
    """Return peak memory over synthesis and quantization in MiB; evaluation is not the method's."""
    known = (record.peak_mib.synthesis, record.peak_mib.quantization)
    return max((mib for mib in known if mib is not None), default=None)


def seconds_per_image(record: Record) -> float | None:
    """Return the seconds of stand-alone synthesis per image.

    Images of a fixed source are those that it holds; of a live one those that it handed out.
    """
    seconds, images = shown_seconds(record).synthesis, record.source_images
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
_BIT_OPERATIONS = "multiply-accumulates of an image, times the bits of both operands (float: 32) and the weight's terms"
_PER_IMAGE = "time of a stand-alone synthesis divided by the images that its source holds or handed out"
_ALL = (
    _percent("top1", "top-1", attrgetter("top1"), better="higher", spread=True, of_images=True, tested=True),
    # Records hold the answers of top-1 only: no test says what the best top-5 or agreement is.
    _percent("top5", "top-5", attrgetter("top5"), spread=True, of_images=True),
    _percent("drop", "drop", drop, better="lower", tested=True),
    _percent("oracle", "oracle", _oracle, about=_ORACLE, spread=True),
    _percent("agreement", "agreement", attrgetter("agreement"), about=_AGREEMENT, spread=True, of_images=True),
    _percent("fp_top1", "full", attrgetter("fp_top1"), about="top-1 of the teacher"),
    _percent("coverage", "coverage", coverage, show=decimals(1), about="multiply-accumulates quantized"),
    Metric("terms", "terms", weight_terms, decimals(2), "", "quantized terms of a weight, mean"),
    Metric("bops", "bit operations", bit_operations, lambda n: f"{n / 1e9:.3g} G", "", _BIT_OPERATIONS),
    _seconds("synthesis", "time of a stand-alone synthesis", lambda record: shown_seconds(record).synthesis),
    _seconds("quantization", "time outside the source's calls", lambda record: shown_seconds(record).quantization),
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
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
