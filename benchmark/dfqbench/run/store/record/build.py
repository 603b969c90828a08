"""Making records: what is known before an attempt, and what its worker and the evaluator report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dfqbench.run.execute.job import Outcome
from dfqbench.run.plan.cell import Cell
from dfqbench.run.store.record import (
    SCHEMA,
    Counts,
    Coverage,
    Dataset,
    Error,
    Model,
    PeakMemory,
    Preprocessing,
    Record,
    SchemeFacts,
    Seconds,
    Snapshot,
    Versions,
)


@dataclass(frozen=True, slots=True)
class Header:
    """What an attempt's record says before anything has run.

    Attributes:
        run: the run's name.
        attempt: number of the attempt.
        environment: identity of the environment.
        device: torch device.
        started_at: ISO time.
        revision: git revision of dfqbench, or None: not run from a checkout.
        oracle: states of the student to evaluate besides the last; 0: none.
    """

    run: str
    attempt: int
    environment: str
    device: str
    started_at: str
    revision: str | None = None
    oracle: int = 0


def now() -> str:
    """Return the present time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def blank(cell: Cell, header: Header) -> Record:
    """Return a record with everything that is known before the attempt, and nothing measured."""
    model = cell.model
    return Record(
        schema=SCHEMA,
        run=header.run,
        source_id=cell.source_id,
        student_id=cell.student_id,
        cell_id=cell.cell_id,
        attempt=header.attempt,
        status="failed",
        flags=[],
        started_at=header.started_at,
        finished_at=None,
        method=cell.method.name,
        label=cell.choice.label,
        title=cell.title,
        control=cell.control,
        quantizer=cell.quantizer.name,
        cross=cell.choice.quantizer is not None,
        recipe=cell.choice.recipe,
        params={"method": cell.method.params, "quantizer": cell.quantizer.params},
        changed_params=_changed(cell),
        versions=Versions(method=cell.method.version, quantizer=cell.quantizer.version),
        fidelity=cell.fidelity,
        target=cell.dataset.name,
        model=Model(
            name=cell.model_name,
            ref=None if model is None else model.ref,
            weights_sha256=cell.model_key.get("weights_sha256"),
            params=None,
        ),
        scheme=SchemeFacts(
            label=cell.scheme.label,
            w_bits=cell.scheme.w_bits,
            a_bits=cell.scheme.a_bits,
            protocol=cell.scheme.protocol.name,
            details=cell.scheme.as_dict()["protocol"],
        ),
        budget=cell.budget.name,
        precision=cell.precision,
        seed=cell.seed,
        threads=cell.threads,
        device=header.device,
        dataset=Dataset(
            name=cell.dataset.name, subset_of=cell.dataset.subset_of, n=None, subset=None, sha256=cell.dataset_hash
        ),
        preprocessing=Preprocessing.model_validate(cell.preprocessing),
        selection="last",
        together_with=[],
        student_from=None,
        oracle=None,
        oracle_asked=header.oracle,
        curve=None,
        environment=header.environment,
        revision=header.revision,
        error=None,
    )


def _changed(cell: Cell) -> list[str]:
    """Parameters that are not the method's own, as `method.lr` or `quantizer.alpha`."""
    parts = {"method": cell.method.changed, "quantizer": cell.quantizer.changed}
    return [f"{part}.{name}" for part, names in parts.items() for name in names]


def add_accuracy(record: Record, baseline: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Add what the evaluator measured.

    Args:
        record: of an attempt that `add_cost` has been called for.
        baseline: the evaluator's answer about the full-precision network.
        answer: its answer about the student.
    """
    coverage = answer["coverage"]
    record.model.params = baseline.get("parameters")
    record.dataset.n, record.dataset.subset = baseline["n"], baseline["subset"]
    record.fp_top1, record.top1, record.top5 = answer["fp_top1"], answer["top1"], answer["top5"]
    record.drop, record.top1_se, record.agreement = answer["drop"], answer["top1_se"], answer["agreement"]
    record.correct = answer["correct"]
    record.coverage = None if coverage is None else Coverage.model_construct(**coverage)
    record.levels_ok = answer["levels_ok"]
    record.violations = list(answer["violations"])
    record.peak_mib.evaluation = answer["peak_mib"]


def add_cost(record: Record, outcome: Outcome, evaluation: float, wall: float) -> None:
    """Add the clock's account; its parts sum to the attempt's wall time.

    `seconds.synthesis`, `counts` and the peak memory of synthesis are the source's stand-alone cost; where it was
    shared, `paid_synthesis` (what this attempt spent inside source calls) is what enters the sum.
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
    record.reused_from = reused.get("id")
    record.source_kind = result.get("source_kind")
    record.source_images = result.get("source_images")
    shared = reused.get("counts") or {}
    # Numbers of workers are stored as they come: a plugin's mistake must not keep a record from being written.
    counts = {name: n + shared.get(name, 0) for name, n in result.get("counts", {}).items()}
    record.counts = Counts.model_construct(**counts)
    record.peak_mib = PeakMemory.model_construct(**result.get("peak_mib", {}))
    if reused.get("peak_mib") is not None:
        record.peak_mib.synthesis = reused["peak_mib"]
    record.real_data_opened = list(result.get("real_data_opened", []))
    record.wrote_outside = list(result.get("wrote_outside", []))
    record.resumed = int(result.get("resumed", 0))
    record.flags = [*record.flags, *result.get("flags", [])]


def add_curve(record: Record, curve: Sequence[Mapping[str, Any]]) -> None:
    """Add the accuracies of snapshots, and the best of them as the oracle's; the headline stays the last state.

    Args:
        record: to add to.
        curve: `step` and `top1` of each snapshot, in the order of steps; the first of equals is the oracle's.
    """
    record.curve = [Snapshot(step=point["step"], top1=point["top1"]) for point in curve]
    record.oracle = max(record.curve, key=lambda point: point.top1 or 0.0, default=None)


def close(record: Record, status: str, error: Error | None = None) -> Record:
    """Set the end of a record."""
    record.status = status
    record.error = error
    record.finished_at = now()
    return record


def error_of(described: Mapping[str, Any] | None, phase: str | None = None) -> Error | None:
    """Return an error that another process has described.

    Args:
        described: type, message, and what else is known; None: no error.
        phase: in which it happened; None: as described.
    """
    if described is None:
        return None
    return Error.model_construct(**described if phase is None else {**described, "phase": phase})
