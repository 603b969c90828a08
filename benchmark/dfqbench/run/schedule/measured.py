"""What worker and evaluator have measured, added to a record, and the status that follows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dfqbench.run.execute.job import Outcome
from dfqbench.run.store.record import Record
from dfqbench.run.store.record_parts import Counts, Coverage, CpuSeconds, Error, PeakMemory, Seconds, Snapshot

CHANCE_ERRORS = 2.0
"""Binomial standard errors above chance up to which a student counts as guessing."""


def add_accuracy(record: Record, baseline: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Add the evaluator's answers about the full-precision network and the student, after `add_cost`."""
    record.model.params = baseline.get("parameters")
    record.dataset.n, record.dataset.subset = baseline["n"], baseline["subset"]
    for name in ("fp_top1", "top1", "top5", "drop", "top1_se", "agreement", "correct", "levels_ok"):
        setattr(record, name, answer[name])
    record.coverage = None if answer["coverage"] is None else Coverage.model_construct(**answer["coverage"])
    record.violations = list(answer["violations"])
    if layers := answer.get("layers"):
        record.scheme.layers = layers
    record.peak_mib.evaluation = answer["peak_mib"]


def add_cost(record: Record, outcome: Outcome, evaluation: float, wall: float) -> None:
    """Add the times, which sum to the attempt's wall time, and the other costs.

    `seconds.synthesis`, `counts` and the peak memory of synthesis are the source's stand-alone cost; where it was
    shared, `paid_synthesis` (seconds of this attempt inside source calls) enters the sum.
    """
    result = outcome.result
    # Earlier processes of an attempt that went on from a checkpoint have spent theirs.
    wall += float(result.get("wall_before", 0.0))
    spent = result.get("seconds", {})
    setup, paid, quantization = (float(spent.get(phase, 0.0)) for phase in ("setup", "synthesis", "quantization"))
    reused = result.get("reused") or {}
    record.seconds = Seconds(
        setup=setup,
        synthesis=paid + float(reused.get("seconds", 0.0)),
        quantization=quantization,
        evaluation=evaluation,
        paid_synthesis=paid,
        unattributed=wall - (setup + paid + quantization + evaluation),
        wall=wall,
    )
    record.cpu_seconds = _cpu_seconds(result.get("cpu_seconds"), reused)
    record.reused_from = reused.get("id")
    record.source_kind = result.get("source_kind")
    record.source_images = result.get("source_images")
    record.used_images = result.get("used_images")
    shared = reused.get("counts") or {}
    # Numbers of workers are stored unchecked: a plugin's mistake must not keep a record from being written.
    counts = {name: n + shared.get(name, 0) for name, n in result.get("counts", {}).items()}
    record.counts = Counts.model_construct(**counts)
    record.peak_mib = PeakMemory.model_construct(**result.get("peak_mib", {}))
    if reused.get("peak_mib") is not None:
        record.peak_mib.synthesis = reused["peak_mib"]
    record.real_data_opened = list(result.get("real_data_opened", []))
    record.wrote_outside = list(result.get("wrote_outside", []))
    record.foreign_calls = list(result.get("foreign_calls", []))
    record.protection = str(result.get("protection", ""))
    record.resumed = int(result.get("resumed", 0))
    record.flags = [*record.flags, *result.get("flags", [])]


def _cpu_seconds(spent: Mapping[str, Any] | None, reused: Mapping[str, Any]) -> CpuSeconds:
    """Return CPU seconds, those of a reused source included; a phase of which a part is not measured has none."""
    if spent is None:
        return CpuSeconds(synthesis=None, quantization=None)
    parts = spent.get("synthesis", 0.0), reused.get("cpu_seconds") if reused else 0.0
    synthesis = None if None in parts else sum(parts)
    return CpuSeconds(synthesis=synthesis, quantization=spent.get("quantization", 0.0))


def add_curve(record: Record, curve: Sequence[Mapping[str, Any]]) -> None:
    """Add `step` and `top1` of snapshots, in the order of steps, and the first of the best as the oracle's."""
    record.curve = [Snapshot(step=point["step"], top1=point["top1"]) for point in curve]
    record.oracle = max(record.curve, key=lambda point: point.top1 or 0.0, default=None)


def error_of(description: Mapping[str, Any] | None, phase: str | None = None) -> Error | None:
    """Return the error that another process has described, or None; `phase` replaces the described one."""
    if description is None:
        return None
    return Error.model_construct(**description if phase is None else {**description, "phase": phase})


def close_unmeasured(record: Record, outcome: Outcome) -> None:
    """Close a record whose attempt has come to nothing: invalid where plugin code broke a rule before it failed."""
    reasons = _broken_rules(record) if outcome.status == "failed" else []
    message = str((outcome.error or {}).get("message", ""))
    error = {"type": "Invalid", "message": "; ".join([*reasons, message])} if reasons else {}
    record.close("invalid" if reasons else outcome.status, error_of((outcome.error or {}) | error or None))


def _broken_rules(record: Record) -> list[str]:
    reasons = []
    if record.real_data_opened:
        reasons.append(f"plugin code opened real data: {record.real_data_opened[0]}")
    if record.wrote_outside:
        reasons.append(f"plugin code wrote into the results outside its folder: {record.wrote_outside[0]}")
    return reasons


def close_measured(record: Record, classes: int) -> None:
    """Close a measured record: invalid where it breaks a rule, collapsed where the student only guesses."""
    reasons = _broken_rules(record)
    if record.violations:
        reasons.append(f"operands are off their quantization levels: {', '.join(record.violations[:3])}")
    if reasons:
        record.close("invalid", Error(type="Invalid", message="; ".join(reasons), phase="checks"))
        return
    top1, full, images = record.top1, record.fp_top1, record.dataset.n
    if top1 is not None and full is not None and images and top1 <= chance_limit(classes, images) < full:
        message = f"top-1 {top1:.2f} is no better than guessing one of {classes} classes"
        record.close("collapsed", Error(type="Collapsed", message=message, phase="evaluation"))
    else:
        record.close("ok")


def chance_limit(classes: int, images: int) -> float:
    """Return the top-1 in percent up to which a student counts as guessing: chance and two standard errors."""
    chance = 1.0 / classes
    return 100.0 * (chance + CHANCE_ERRORS * math.sqrt(chance * (1.0 - chance) / images))
