"""Records as CSV: one row a cell, columns for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dfqbench.report.columns import VALUES, coverage, peak, total_seconds
from dfqbench.report.status import reason
from dfqbench.report.values import Record, items, number, plain, text, value

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
"""Columns that hold one value of the record, and its dotted key there."""


DIAGNOSED = tuple(name for name, known in VALUES.items() if known.diagnosed)
COMPUTED: Mapping[str, Callable[[Record], float | None]] = {
    "total_s": total_seconds,
    "coverage": coverage,
    "peak_mib": peak,
}
"""Columns that are computed from several keys of the record."""
_LISTS = ("params", "flags", "float_layers", "reason")
_CLAIM = ("claimed_top1", "claimed_drop", "claim_source", "claim_selection", "verdict")


def to_csv(records: Iterable[Record], *, claims: bool = False) -> str:
    """One line a record, under a header line; empty fields for missing values.

    Args:
        records: what to write.
        claims: whether the records hold `claims`, whose first (the most comparable) gets columns.
    """
    out = io.StringIO()
    names = [*COLUMNS, *COMPUTED, *DIAGNOSED, *_LISTS, *(_CLAIM if claims else ())]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for record in records:
        row: dict[str, Any] = {column: _field(value(record, key)) for column, key in COLUMNS.items()}
        row |= {column: read(record) for column, read in COMPUTED.items()}
        row |= {name: number(record, f"diagnostics.{name}") for name in DIAGNOSED}
        row["params"] = _field(value(record, "params"))
        row["flags"] = ";".join(str(flag) for flag in items(record, "flags"))
        row["float_layers"] = ";".join(str(layer) for layer in items(record, "coverage.float_layers"))
        row["reason"] = reason(record) if text(record, "error") else ""
        if claims:
            row |= _claim(record)
        writer.writerow(row)
    return out.getvalue()


def _claim(record: Record) -> dict[str, Any]:
    found = items(record, "claims")
    if not found:
        return dict.fromkeys(_CLAIM, "")
    keys = ("top1", "drop", "source", "selection", "verdict")
    return {column: _field(found[0][key]) for column, key in zip(_CLAIM, keys, strict=True)}


def _field(entry: Any) -> Any:
    cleaned = plain(entry)
    return json.dumps(cleaned, sort_keys=True) if isinstance(cleaned, dict | list) else cleaned
