"""Records as CSV: one row a cell, columns for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dfqbench.report.columns import VALUES, coverage, peak, total_seconds
from dfqbench.report.status import reason
from dfqbench.report.values import plain
from dfqbench.report.verdict import Verdict
from dfqbench.run.store.record import Record

_SECONDS = ("setup", "synthesis", "paid_synthesis", "quantization", "evaluation", "unattributed", "wall")
_COUNTS = ("images", "source_steps", "teacher_images", "student_images", "optimizer_steps")

COLUMNS: Mapping[str, str] = {
    **{name: name for name in ("run", "source_id", "student_id", "cell_id", "attempt", "status")},
    **{name: name for name in ("label", "method", "quantizer", "recipe", "control", "fidelity", "target")},
    "model": "model.name",
    "model_ref": "model.ref",
    "weights_sha256": "model.weights_sha256",
    "scheme": "scheme.label",
    "w_bits": "scheme.w_bits",
    "a_bits": "scheme.a_bits",
    **{name: name for name in ("budget", "precision", "seed")},
    "dataset": "dataset.name",
    "images": "dataset.n",
    "subset_of": "dataset.subset_of",
    "subset": "dataset.subset",
    **{name: name for name in ("fp_top1", "top1", "top5", "drop", "top1_se", "agreement", "selection")},
    "oracle_top1": "oracle.top1",
    "oracle_step": "oracle.step",
    **{f"{name}_s": f"seconds.{name}" for name in _SECONDS},
    "reused_from": "reused_from",
    **{f"count_{name}": f"counts.{name}" for name in _COUNTS},
    "macs_quantized": "coverage.macs_quantized",
    "macs_total": "coverage.macs_total",
    "levels_ok": "levels_ok",
    "environment": "environment",
    "started_at": "started_at",
    "finished_at": "finished_at",
}
"""Columns that hold one value of the record, and its dotted key in the JSON."""


COMPUTED: Mapping[str, Callable[[Record], float | None]] = {
    "total_s": total_seconds,
    "coverage": coverage,
    "peak_mib": peak,
    **{name: known.read for name, known in VALUES.items() if known.diagnosed},
}
"""Columns that are computed, and those of `dfqbench diagnose`."""
_LISTS = ("params", "flags", "float_layers", "reason")
_CLAIM = ("claimed_top1", "claimed_drop", "claim_source", "claim_selection", "verdict")


def to_csv(records: Iterable[Record], claims: Mapping[int, Sequence[Verdict]] | None = None) -> str:
    """One line a record, under a header line; empty fields for missing values.

    Args:
        records: what to write.
        claims: verdicts by the record's `id`, of which the first (the most comparable) gets columns; None: no columns.
    """
    out = io.StringIO()
    names = [*COLUMNS, *COMPUTED, *_LISTS, *(_CLAIM if claims is not None else ())]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for record in records:
        data = record.as_dict()
        row: dict[str, Any] = {column: _field(_at(data, key)) for column, key in COLUMNS.items()}
        row |= {column: read(record) for column, read in COMPUTED.items()}
        row["params"] = _field(record.params)
        row["flags"] = ";".join(record.flags)
        row["float_layers"] = ";".join(record.coverage.float_layers) if record.coverage is not None else ""
        row["reason"] = reason(record) if record.error is not None else ""
        if claims is not None:
            row |= _claim(claims.get(id(record), ()))
        writer.writerow(row)
    return out.getvalue()


def _at(data: Any, key: str) -> Any:
    for part in key.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _claim(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    if not verdicts:
        return dict.fromkeys(_CLAIM, "")
    found = verdicts[0].as_dict()
    keys = ("top1", "drop", "source", "selection", "verdict")
    return {column: _field(found[key]) for column, key in zip(_CLAIM, keys, strict=True)}


def _field(entry: Any) -> Any:
    cleaned = plain(entry)
    return json.dumps(cleaned, sort_keys=True) if isinstance(cleaned, dict | list) else cleaned
