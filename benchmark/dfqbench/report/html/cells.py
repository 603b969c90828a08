"""Cells on the report's page: a line of the summary for each place, and a section for each record."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from dfqbench.report.formatting import ABSENT, optional
from dfqbench.report.literature.publication_index import PublicationIndex
from dfqbench.report.literature.verdict import verdicts
from dfqbench.report.metrics import METRICS
from dfqbench.report.record_access import (
    COLLAPSED,
    control_rank,
    finished,
    flattened,
    json_ready,
    model_name,
    reason,
    scheme_label,
    short_names,
    status_word,
)
from dfqbench.report.tables.aggregate import aggregate
from dfqbench.report.tables.origin import origin, without_recipe
from dfqbench.report.tables.pivot import Pivot
from dfqbench.run.store.record import Record
from dfqbench.run.store.record_parts import Error
from dfqbench.run.store.status import described_flag

SUMMARY = tuple(METRICS[name] for name in ("top1", "drop", "agreement", "synthesis", "total"))
LOG, LOG_LINES, LOG_BYTES = "log.txt", 20, 4000
MOST_TEXT = 6000  # characters of a traceback that are shown
_FACTS = (
    *("status", "run", "attempt", "started_at", "finished_at", "method", "quantizer", "recipe", "fidelity"),
    *("target", "budget", "precision", "seed", "threads", "device", "environment", "reused_from"),
    *("own_quantize", "recipe_changes", "range", "source_kind", "source_images", "used_images"),
    *("fp_top1", "top1", "top5", "drop", "top1_se", "agreement", "levels_ok", "changed_params", "together_with"),
)
_NESTED_FACTS = (
    *("seconds", "cpu_seconds", "counts", "peak_mib", "versions", "dataset", "model", "oracle", "student_from"),
)
Facts = list[tuple[str, str]]  # names and values


def anchor(record: Record) -> str:
    """Return the name of a record's section: letters, digits and `-` only."""
    parts = (record.run, record.cell_id, str(record.attempt))
    return "cell-" + "-".join("".join(c if c.isascii() and c.isalnum() else "_" for c in part) for part in parts)


def summary(results: Iterable[Pivot], anchors: frozenset[str], publications: PublicationIndex) -> list[dict[str, Any]]:
    """Return the summary's lines, one for each method on a network under a scheme, as the template shows them.

    Rows of the pivots are schemes and methods, columns networks; lines link to the sections in `anchors`. Within a
    scheme and a network the highest top-1 comes first, and what has none last.
    """
    lines = []
    for pivot in results:
        schemes = list(dict.fromkeys(row.names["scheme"] for row in pivot.rows))
        unsorted = []
        for (row, column), records in sorted(pivot.places.items()):
            line = _line(pivot, row, column, records, publications)
            line["anchor"] = line["anchor"] if line["anchor"] in anchors else ""
            top1 = line["numbers"].means[0]
            place = schemes.index(pivot.rows[row].names["scheme"]), column
            unsorted.append((*place, top1 is None, -(top1 or 0.0), row, line))
        lines += [entry[-1] for entry in sorted(unsorted, key=itemgetter(0, 1, 2, 3, 4))]
    return lines


def summary_headers(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the headers of the summary's words; columns that no line fills, or all alike, are left out."""
    claims = [name for name in ("verdict", "claimed") if any(line[name] for line in lines)]
    return [
        "method",
        "network",
        "scheme",
        *claims,
        *(n for n in ("target", "budget") if len({e[n] for e in lines}) > 1),
    ]


def _line(
    pivot: Pivot, row: int, column: int, records: Sequence[Record], publications: PublicationIndex
) -> dict[str, Any]:
    good = [record for record in records if finished(record)]
    first, names = (good or records)[0], pivot.rows[row].names
    faults = {status_word(record) for record in records if not finished(record)}
    faults |= {record.status for record in good if record.status == COLLAPSED}
    best = next(iter(verdicts(good, publications)), None)
    return {
        "origin": origin(records).words,
        "names": (
            without_recipe(names["method"], records),
            short_names(pivot.models)[pivot.columns[column].names["model"]],
            names["scheme"],
        ),
        "target": first.target or "unknown",
        "budget": first.budget or "unknown",
        "anchor": anchor(first),
        "numbers": aggregate(records, SUMMARY),
        "seeds": len(good),
        "state": ", ".join(sorted(faults)) or "ok",
        "verdict": best.word if best else "",
        "claimed": f"{best.number.top1:.2f} ({best.number.reported_in})" if best else "",
        "control": control_rank(first) > 0,
    }


def section(record: Record, folder: Path, label: str, hardware: Mapping[str, str]) -> dict[str, Any]:
    """Return the section of a record, as the template shows it.

    `folder` is that of its attempt, `label` the method's in tables; `hardware` holds words for environments.
    """
    good = finished(record)
    error = record.error or Error()
    described = error.model_dump(exclude_none=True, exclude_unset=True, exclude={"traceback"}, warnings=False)
    seed = "?" if record.seed is None else record.seed
    return {
        "anchor": anchor(record),
        "title": f"{label}, {record.target} {model_name(record)}, {scheme_label(record)}, seed {seed}",
        "good": good,
        "result": f"top-1 {optional(record.top1)}" if good else f"{status_word(record)}: {reason(record)}"[:200],
        "facts": _facts(record, hardware),
        "params": [(name.removeprefix("method."), _short(value)) for name, value in flattened(record.params).items()],
        "flags": [*map(described_flag, record.flags), *record.violations, *record.real_data_opened],
        "error": [(name, _short(value)) for name, value in described.items()],
        "traceback": (error.traceback or "")[-MOST_TEXT:],
        "log": _log_end(folder / LOG),
        "layers": [
            (layer.name or "?", *map(_gap, (layer.bns, layer.mean_gap, layer.std_gap)))
            for layer in record.diagnostics.layers
        ],
    }


def _facts(record: Record, hardware: Mapping[str, str]) -> Facts:
    data = record.as_dict()
    facts = [(key, _short(data[key])) for key in _FACTS if data.get(key) not in (None, [])]
    if hardware.get(record.environment):
        facts.append(("hardware", hardware[record.environment]))
    for key in _NESTED_FACTS:
        if isinstance(data.get(key), dict):
            values = flattened({key: data[key]})
            facts += [(name, _short(value)) for name, value in values.items() if value is not None]
    for metric in (METRICS[name] for name in ("coverage", "bops", "peak", "per_image")):
        number = metric.read(record)
        if number is not None:
            facts.append((metric.header, metric.show(number)))
    if record.coverage is not None and record.coverage.float_layers:
        facts.append(("in float", _short(", ".join(record.coverage.float_layers))))
    diagnosed = record.diagnostics.model_dump(exclude_unset=True)
    numbers = {name: value for name, value in diagnosed.items() if isinstance(value, int | float | str)}
    return facts + [(f"diagnosis: {name}", _short(value)) for name, value in numbers.items()]


def _gap(number: float | None) -> str:
    return ABSENT if number is None else f"{number:.3g}"


def _short(value: object) -> str:
    """Return a value on one line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    shown = value if isinstance(value, str) else json.dumps(json_ready(value), default=str)
    return shown if len(shown) <= 500 else f"{shown[:500]} …"


def _log_end(file: Path) -> str:
    """Return the last lines of a log, or nothing where there is none."""
    try:
        with file.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - LOG_BYTES))
            lines = stream.read(LOG_BYTES).decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(deque(lines, LOG_LINES)).strip()
