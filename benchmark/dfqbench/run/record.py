"""Building records: one JSON object an attempt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dfqbench.run.cell import Cell
from dfqbench.run.job import Outcome
from dfqbench.run.store import SCHEMA

PHASES = ("setup", "synthesis", "quantization", "evaluation")


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
    """The present time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def blank(cell: Cell, header: Header) -> dict[str, Any]:
    """A record with everything that is known before the attempt, and nothing measured."""
    model = cell.model
    return {
        "schema": SCHEMA,
        "run": header.run,
        "source_id": cell.source_id,
        "student_id": cell.student_id,
        "cell_id": cell.cell_id,
        "attempt": header.attempt,
        "status": "failed",
        "flags": [],
        "started_at": header.started_at,
        "finished_at": None,
        "method": cell.method.name,
        "label": cell.choice.label,
        "title": cell.title,
        "control": cell.control,
        "quantizer": cell.quantizer.name,
        "cross": cell.choice.quantizer is not None,
        "recipe": cell.choice.recipe,
        "params": {"method": cell.method.params, "quantizer": cell.quantizer.params},
        "changed_params": _changed(cell),
        "versions": {"method": cell.method.version, "quantizer": cell.quantizer.version},
        "fidelity": cell.fidelity,
        "target": cell.dataset.name,
        "model": {
            "name": cell.model_name,
            "ref": None if model is None else model.ref,
            "weights_sha256": cell.model_key.get("weights_sha256"),
            "params": None,
        },
        "scheme": {
            "label": cell.scheme.label,
            "w_bits": cell.scheme.w_bits,
            "a_bits": cell.scheme.a_bits,
            "protocol": cell.scheme.protocol.name,
            "details": cell.scheme.as_dict()["protocol"],
        },
        "budget": cell.budget.name,
        "precision": cell.precision,
        "seed": cell.seed,
        "threads": cell.threads,
        "device": header.device,
        "dataset": {
            "name": cell.dataset.name,
            "subset_of": cell.dataset.subset_of,
            "n": None,
            "subset": None,
            "sha256": cell.dataset_hash,
        },
        "preprocessing": cell.preprocessing,
        "selection": "last",
        "together_with": [],
        "student_from": None,
        "oracle": None,
        "oracle_asked": header.oracle,
        "curve": None,
        "environment": header.environment,
        "revision": header.revision,
        "error": None,
    }


def _changed(cell: Cell) -> list[str]:
    """Parameters that are not the method's own, as `method.lr` or `quantizer.alpha`."""
    parts = {"method": cell.method.changed, "quantizer": cell.quantizer.changed}
    return [f"{part}.{name}" for part, names in parts.items() for name in names]


def add_accuracy(record: dict[str, Any], baseline: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Adds what the evaluator measured."""
    record["model"]["params"] = baseline.get("parameters")
    record["dataset"] |= {"n": baseline["n"], "subset": baseline["subset"]}
    for key in ("fp_top1", "top1", "top5", "drop", "top1_se", "agreement", "correct", "coverage", "levels_ok"):
        record[key] = found[key]
    record["violations"] = list(found["violations"])


def add_cost(record: dict[str, Any], outcome: Outcome, evaluation: float, wall: float) -> None:
    """Adds the clock's account; its parts sum to the attempt's wall time.

    `seconds.synthesis`, `counts` and the peak memory of synthesis are the source's stand-alone cost; where it was
    shared, `paid_synthesis` (what this attempt spent inside source calls) is what enters the sum.
    """
    result = outcome.result
    # Earlier processes of an attempt that went on from a checkpoint have spent theirs.
    wall += float(result.get("wall_before", 0.0))
    spent = {phase: float(result.get("seconds", {}).get(phase, 0.0)) for phase in PHASES}
    spent["evaluation"] = evaluation
    paid = spent["synthesis"]
    reused = result.get("reused") or {}
    record["seconds"] = spent | {
        "synthesis": paid + float(reused.get("seconds", 0.0)),
        "paid_synthesis": paid,
        "unattributed": wall - sum(spent.values()),
        "wall": wall,
    }
    record["reused_from"] = reused.get("id")
    record["source_kind"] = result.get("source_kind")
    record["source_images"] = result.get("source_images")
    shared = reused.get("counts") or {}
    record["counts"] = {name: n + shared.get(name, 0) for name, n in result.get("counts", {}).items()}
    record["peak_mib"] = dict(result.get("peak_mib", {}))
    if reused.get("peak_mib") is not None:
        record["peak_mib"]["synthesis"] = reused["peak_mib"]
    record["real_data_opened"] = list(result.get("real_data_opened", []))
    record["wrote_outside"] = list(result.get("wrote_outside", []))
    record["resumed"] = int(result.get("resumed", 0))
    record["flags"] = [*record["flags"], *result.get("flags", [])]


def add_curve(record: dict[str, Any], curve: Sequence[Mapping[str, Any]]) -> None:
    """Adds the accuracies of snapshots, and the best of them as the oracle's; the headline stays the last state.

    Args:
        record: to add to.
        curve: `step` and `top1` of each snapshot, in the order of steps; the first of equals is the oracle's.
    """
    record["curve"] = [dict(point) for point in curve]
    best = max(curve, key=lambda point: point["top1"], default=None)
    record["oracle"] = None if best is None else {"top1": best["top1"], "step": best["step"]}


def close(record: dict[str, Any], status: str, error: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Sets the end of a record."""
    record["status"] = status
    record["error"] = None if error is None else dict(error)
    record["finished_at"] = now()
    return record
