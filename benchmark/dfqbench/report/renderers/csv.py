"""Records as CSV: one row a cell, columns for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dfqbench.report.literature.verdict import Verdict
from dfqbench.report.metrics import METRICS, coverage, peak, total
from dfqbench.report.record_access import json_ready, reason, scheme_label
from dfqbench.run.store.record import Record

_SECONDS = ("setup", "synthesis", "paid_synthesis", "quantization", "evaluation", "unattributed", "wall")
_COUNTS = ("images", "sampled_images", "source_steps", "teacher_images", "student_images", "optimizer_steps")
COLUMNS: Mapping[str, str] = {
    **{name: name for name in ("run", "source_id", "student_id", "cell_id", "attempt", "status")},
    **{
        name: name
        for name in ("label", "method", "quantizer", "own_quantize", "recipe", "range", "control", "fidelity", "target")
    },
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
    **{f"cpu_{name}_s": f"cpu_seconds.{name}" for name in ("synthesis", "quantization")},
    **{name: name for name in ("reused_from", "source_kind", "source_images", "used_images")},
    **{f"count_{name}": f"counts.{name}" for name in _COUNTS},
    **{name: f"coverage.{name}" for name in ("macs_quantized", "macs_total", "weight_terms", "bit_operations")},
    **{name: name for name in ("levels_ok", "environment", "started_at", "finished_at")},
}
"""Columns that hold one value of the record, and its dotted key in the JSON."""
COMPUTED: Mapping[str, Callable[[Record], float | None]] = {
    "total_s": lambda record: total(record.seconds),
    "coverage": coverage,
    "peak_mib": peak,
    **{name: metric.read for name, metric in METRICS.items() if metric.diagnosed},
}
"""Columns that are computed, and those of `dfqbench diagnose`."""
_LISTS = ("mark", "params", "recipe_changes", "flags", "float_layers", "reason")
_CLAIM = {
    "claimed_top1": "top1",
    "claimed_drop": "drop",
    "claim_source": "source",
    "claim_selection": "selection",
    "claim_distance": "distance",
    "verdict": "verdict",
}
"""Columns of a published number, and the keys of its verdict."""


def to_csv(
    records: Iterable[Record], marks: Mapping[int, str], judged: Mapping[int, Sequence[Verdict]] | None = None
) -> str:
    """Return one line a record, under a header line; empty fields for missing values.

    `marks` and `judged` hold ranks and verdicts by the record's `id`; the first verdict, the most comparable, is shown.
    """
    rows = []
    for record in records:
        data = record.as_dict()
        row = {column: _field(_value(data, key)) for column, key in COLUMNS.items()}
        row |= {column: read(record) for column, read in COMPUTED.items()}
        row["scheme"] = scheme_label(record)
        row["mark"] = marks.get(id(record), "")
        row["params"] = _field(record.params)
        row["recipe_changes"] = ";".join(record.recipe_changes)
        row["flags"] = ";".join(record.flags)
        row["float_layers"] = ";".join(record.coverage.float_layers) if record.coverage is not None else ""
        row["reason"] = reason(record) if record.error is not None else ""
        for verdict in (judged or {}).get(id(record), ())[:1]:
            entries = verdict.as_dict()
            row |= {column: _field(entries[key]) for column, key in _CLAIM.items()}
        rows.append(row)
    return csv_text([*COLUMNS, *COMPUTED, *_LISTS, *(_CLAIM if judged is not None else ())], rows)


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as CSV under a header line."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _value(data: Any, key: str) -> Any:
    for part in key.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _field(value: Any) -> Any:
    cleaned = json_ready(value)
    return json.dumps(cleaned, sort_keys=True) if isinstance(cleaned, dict | list) else cleaned
