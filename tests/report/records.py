"""Records for tests, and the fields of rendered tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from dfqbench.quant.scheme import PROTOCOLS
from dfqbench.run.evaluate.accuracy import packed
from dfqbench.run.store.record import Record


def record(cell: str, **changes: Any) -> Record:
    made: dict[str, Any] = {"schema": 1, "run": "w4a4", "cell_id": cell, "attempt": 1, "status": "ok", "flags": []}
    made |= {"target": "digits", "budget": "short", "precision": "float32", "seed": 0, "environment": "e1"}
    made |= {"model": {"name": "digits:resnet8", "ref": "digits:resnet8"}, "scheme": scheme(4)}
    made |= {"method": "zeroq", "quantizer": "calibrate", "finished_at": "2025-01-01T00:00:00Z", "error": None}
    made["params"] = {"method": {"iterations": 500}, "quantizer": {"images": 64}}
    made["dataset"] = {"name": "digits", "n": 540, "subset_of": None, "subset": None}
    made["coverage"] = {"macs_quantized": 99, "macs_total": 100, "float_layers": ["fc"]}
    made |= {"fp_top1": 98.5, "top1": 90.25, "drop": 8.25, "top1_se": 1.28}
    made["seconds"] = {"synthesis": 12.34, "wall": 20.0}
    return Record.from_data(made | changes)


def answered(cell: str, flags: Any, **changes: Any) -> Record:
    """A record with an answer for each image."""
    bits = np.asarray(flags, dtype=bool)
    dataset = {"name": "digits", "n": len(bits), "sha256": "d", "subset": None}
    top1 = 100 * float(bits.mean())
    accuracy = {"top1": top1, "drop": 98.5 - top1, "top1_se": None, "correct": packed(bits)}
    return record(cell, **{"dataset": dataset, **accuracy, **changes})


def right(count: int, images: int = 540) -> Any:
    """Answers of which the first are right."""
    return np.arange(images) < count


def changed(made: Record, **changes: Any) -> Record:
    """The same record with other values."""
    return Record.from_data(made.as_dict() | changes)


def scheme(w_bits: int, protocol: str = "gdfq") -> dict[str, Any]:
    details = {"version": PROTOCOLS[protocol].version} if protocol in PROTOCOLS else {}
    named = {"label": f"w{w_bits}a{w_bits}@{protocol}", "protocol": protocol, "details": details}
    return named | {"w_bits": w_bits, "a_bits": w_bits}


def failed(cell: str, status: str, message: str, kind: str = "PluginError", **changes: Any) -> Record:
    error = {"type": kind, "message": message, "phase": "synthesis", "traceback": "..."}
    return record(cell, status=status, error=error, top1=None, drop=None, **changes)


def rows(text: str) -> list[list[str]]:
    """Fields of the Markdown table's body."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[field.strip() for field in line.strip("|").split(" | ")] for line in lines[2:]]
