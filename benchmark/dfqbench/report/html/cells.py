"""Cells on the report's page: a line of the summary for each place, and a section for each record."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
from dfqbench.report.tables.aggregate import Aggregate, aggregate
from dfqbench.report.tables.pivot import Pivot
from dfqbench.run.store.record import Error, Record

SUMMARY = tuple(METRICS[name] for name in ("top1", "drop", "agreement", "synthesis", "total"))
LOG, LOG_LINES, LOG_BYTES = "log.txt", 20, 4000
MOST_TEXT = 6000
"""Characters of a traceback that are shown."""
_FACTS = (
    *("status", "run", "attempt", "started_at", "finished_at", "method", "quantizer", "recipe", "fidelity"),
    *("target", "budget", "precision", "seed", "threads", "device", "environment", "reused_from", "source_images"),
    *("fp_top1", "top1", "top5", "drop", "top1_se", "agreement", "levels_ok", "changed_params", "together_with"),
)
_NESTED_FACTS = ("seconds", "counts", "peak_mib", "versions", "dataset", "model", "oracle", "student_from")
Facts = list[tuple[str, str]]
"""Names and values."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the summary: a method on a network under a scheme, over its seeds."""

    names: tuple[str, ...]  # method, network, scheme
    run_on: tuple[str, ...]  # target and budget
    anchor: str  # of the first seed's section; empty: the page has none
    numbers: Aggregate
    seeds: int  # that finished
    state: str  # `ok`, or what went wrong
    verdict: str  # about the most comparable published number, or empty
    claimed: str  # its top-1 with its source, or empty
    control: bool


@dataclass(frozen=True, slots=True)
class Section:
    """The section of one cell."""

    anchor: str
    title: str  # method, network, scheme and seed
    good: bool  # whether its numbers count
    result: str  # top-1, or why there is none
    facts: Facts
    params: Facts
    flags: list[str]  # flags, operands off their quantization levels, and files of real data
    error: Facts  # without its traceback
    traceback: str  # the end of it
    log: str  # the end of it
    layers: list[tuple[str, ...]]  # distances to the BatchNorm statistics by layer


def anchor(record: Record) -> str:
    """Return the name of a record's section: letters, digits and `-` only."""
    parts = (record.run, record.cell_id, str(record.attempt))
    return "cell-" + "-".join("".join(c if c.isascii() and c.isalnum() else "_" for c in part) for part in parts)


def summary(pivot: Pivot, anchors: frozenset[str], publications: PublicationIndex) -> list[Line]:
    """Return the summary's lines for methods by networks.

    Args:
        pivot: with rows of scheme and method, columns of networks.
        anchors: of the sections that the page has.
        publications: published numbers.
    """
    lines = []
    models = short_names(pivot.models)
    for (row, column), records in sorted(pivot.places.items()):
        good = [record for record in records if finished(record)]
        first = (good or records)[0]
        names = pivot.rows[row].names
        faults = {status_word(r) for r in records if not finished(r)} | {
            COLLAPSED for r in good if r.status == COLLAPSED
        }
        best = next(iter(verdicts(good, publications)), None)
        lines.append(
            Line(
                (names["method"], models[pivot.columns[column].names["model"]], names["scheme"]),
                (first.target or "unknown", first.budget or "unknown"),
                anchor(first) if anchor(first) in anchors else "",
                aggregate(records, SUMMARY),
                len(good),
                ", ".join(sorted(faults)) or "ok",
                best.word if best else "",
                f"{best.number.top1:.2f} ({best.number.reported_in})" if best else "",
                control_rank(first) > 0,
            )
        )
    return lines


def section(record: Record, folder: Path, label: str, hardware: Mapping[str, str]) -> Section:
    """Return the section of a record.

    Args:
        record: the record.
        folder: of its attempt.
        label: the method's in tables.
        hardware: words for environments, by id.
    """
    good = finished(record)
    error = record.error or Error()
    facts = error.model_dump(exclude_none=True, exclude_unset=True, exclude={"traceback"}, warnings=False)
    seed = "?" if record.seed is None else record.seed
    layers = record.diagnostics.layers
    return Section(
        anchor(record),
        f"{label}, {record.target} {model_name(record)}, {scheme_label(record)}, seed {seed}",
        good,
        f"top-1 {optional(record.top1)}" if good else f"{status_word(record)}: {reason(record)}"[:200],
        _facts(record, hardware),
        [(name.removeprefix("method."), _short(value)) for name, value in flattened(record.params).items()],
        [*record.flags, *record.violations, *record.real_data_opened],
        [(name, _short(value)) for name, value in facts.items()],
        (error.traceback or "")[-MOST_TEXT:],
        _log_end(folder / LOG),
        [(layer.name or "?", *map(_gap, (layer.bns, layer.mean_gap, layer.std_gap))) for layer in layers],
    )


def _facts(record: Record, hardware: Mapping[str, str]) -> Facts:
    data = record.as_dict()
    facts = [(key, _short(data[key])) for key in _FACTS if data.get(key) not in (None, [])]
    if hardware.get(record.environment):
        facts.append(("hardware", hardware[record.environment]))
    for key in _NESTED_FACTS:
        if isinstance(data.get(key), dict):
            values = flattened({key: data[key]})
            facts += [(name, _short(value)) for name, value in values.items() if value is not None]
    for metric in (METRICS[name] for name in ("coverage", "peak", "per_image")):
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
