"""Cells: what the report's page says of each record, and one line of its summary for each place."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfqbench.report.book import ClaimBook
from dfqbench.report.columns import VALUES, Value
from dfqbench.report.labels import model_name, scheme_label, short_names
from dfqbench.report.outcome import Outcome, outcome
from dfqbench.report.sheet import Sheet
from dfqbench.report.status import control_rank, finished, reason, word
from dfqbench.report.values import flattened, plain
from dfqbench.report.verdict import verdicts
from dfqbench.run.store.record import Error, Record

SUMMARY = tuple(VALUES[name] for name in ("top1", "drop", "agreement", "synthesis", "total"))
LOG, LOG_LINES, LOG_BYTES = "log.txt", 20, 4000
MOST_TEXT = 6000
"""Characters of a traceback that are shown."""
KEY_FACTS = (
    *("status", "run", "attempt", "started_at", "finished_at", "method", "quantizer", "recipe", "fidelity"),
    *("target", "budget", "precision", "seed", "threads", "device", "environment", "reused_from", "source_images"),
    *("fp_top1", "top1", "top5", "drop", "top1_se", "agreement", "levels_ok", "changed_params"),
    "together_with",
)
TABLES = ("seconds", "counts", "peak_mib", "versions", "dataset", "model", "oracle", "student_from")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the summary: a method on a network under a scheme, over its seeds.

    Attributes:
        names: method, network, scheme.
        run_on: target and budget.
        anchor: of the first seed's section; empty: left out.
        shown: text of the values.
        numbers: means behind them, for sorting.
        seeds: how many finished.
        state: `ok`, or what went wrong.
        verdict: about the most comparable claim, or empty.
        claimed: its top-1 with its source, or empty.
        control: whether it is a control.
    """

    names: tuple[str, ...]
    run_on: tuple[str, str]
    anchor: str
    shown: tuple[str, ...]
    numbers: tuple[float | None, ...]
    seeds: int
    state: str
    verdict: str
    claimed: str
    control: bool


@dataclass(frozen=True, slots=True)
class Section:
    """What is told of one cell.

    Attributes:
        anchor: of the section.
        title: method, network, scheme and seed.
        state: status in words.
        good: whether its numbers count.
        result: top-1, or why there is none.
        facts: names and values.
        params: names and values.
        flags: flags and layers in float.
        error: names and values of the error, without its traceback; empty where there was none.
        traceback: the end of it, or empty.
        log: the end of the log, or empty.
        layers: distances to the BatchNorm statistics by layer.
    """

    anchor: str
    title: str
    state: str
    good: bool
    result: str
    facts: tuple[tuple[str, str], ...]
    params: tuple[tuple[str, str], ...]
    flags: tuple[str, ...]
    error: tuple[tuple[str, str], ...]
    traceback: str
    log: str
    layers: tuple[tuple[str, str, str, str], ...]


def anchor(record: Record) -> str:
    """The name of a record's section: letters, digits and `-` only."""
    parts = (record.run, record.cell_id, str(record.attempt))
    return "cell-" + "-".join("".join(c if c.isascii() and c.isalnum() else "_" for c in part) for part in parts)


def summary(sheet: Sheet, known: frozenset[str], book: ClaimBook) -> list[Line]:
    """The summary's lines for a sheet of methods by networks.

    Args:
        sheet: with rows of scheme and method, columns of networks.
        known: anchors of the sections that the page has.
        book: published numbers.
    """
    lines = []
    for (row, column), records in sorted(sheet.places.items()):
        found: Outcome = outcome(records, SUMMARY)
        good = [record for record in records if finished(record)]
        first = (good or records)[0]
        model = sheet.columns[column].names["model"]
        names = (sheet.rows[row].names["method"], short_names(sheet.models)[model], sheet.rows[row].names["scheme"])
        judged = verdicts(good, book)
        bad = sorted({word(record) for record in records if not finished(record)} | {_fallen(good)} - {""})
        lines.append(
            Line(
                names,
                (first.target or "unknown", first.budget or "unknown"),
                anchor(first) if anchor(first) in known else "",
                found.shown,
                found.means,
                len(good),
                ", ".join(bad) or "ok",
                judged[0].word if judged else "",
                f"{judged[0].claim.top1:.2f} ({judged[0].claim.reported_in})" if judged else "",
                control_rank(first) > 0,
            )
        )
    return lines


def _fallen(records: Sequence[Record]) -> str:
    return "collapsed" if any(record.status == "collapsed" for record in records) else ""


def section(record: Record, folder: Path, label: str, machines: Mapping[str, str]) -> Section:
    """What is told of a record.

    Args:
        record: the record.
        folder: of its attempt.
        label: the method's in tables.
        machines: words for environments, by id.
    """
    good = finished(record)
    error = record.error or Error()
    shown = error.model_dump(exclude_none=True, exclude_unset=True, exclude={"traceback"}, warnings=False)
    place = f"{record.target} {model_name(record)}, {scheme_label(record)}"
    return Section(
        anchor(record),
        f"{label}, {place}, seed {'?' if record.seed is None else record.seed}",
        record.status or "unknown",
        good,
        f"top-1 {_top1(VALUES['top1'], record)}" if good else f"{word(record)}: {reason(record)}"[:200],
        tuple(_facts(record, machines)),
        tuple((name.removeprefix("method."), _short(entry)) for name, entry in flattened(record.params).items()),
        (*record.flags, *record.violations, *record.real_data_opened),
        tuple((name, _short(entry)) for name, entry in shown.items()),
        (error.traceback or "")[-MOST_TEXT:],
        log_end(folder / LOG),
        tuple(_layers(record)),
    )


def _top1(kind: Value, record: Record) -> str:
    found = kind.read(record)
    return "-" if found is None else kind.show(found)


def _facts(record: Record, machines: Mapping[str, str]) -> list[tuple[str, str]]:
    data = record.as_dict()
    found = [(key, _short(data[key])) for key in KEY_FACTS if data.get(key) not in (None, [])]
    machine = machines.get(record.environment)
    if machine:
        found.append(("hardware", machine))
    for key in TABLES:
        if isinstance(data.get(key), dict):
            facts = flattened(data[key])
            found += [(f"{key}.{name}", _short(fact)) for name, fact in facts.items() if fact is not None]
    for name in ("coverage", "peak", "per_image"):
        known = VALUES[name].read(record)
        if known is not None:
            found.append((VALUES[name].header, VALUES[name].show(known)))
    if record.coverage is not None and record.coverage.float_layers:
        found.append(("in float", _short(", ".join(record.coverage.float_layers))))
    diagnosed = record.diagnostics.model_dump(exclude_unset=True)
    numbers = {name: entry for name, entry in diagnosed.items() if isinstance(entry, int | float | str)}
    return found + [(f"diagnosis: {name}", _short(entry)) for name, entry in numbers.items()]


def _layers(record: Record) -> list[tuple[str, str, str, str]]:
    rows = []
    for layer in record.diagnostics.layers:
        one, two, three = ("-" if gap is None else f"{gap:.3g}" for gap in (layer.bns, layer.mean_gap, layer.std_gap))
        rows.append((layer.name or "?", one, two, three))
    return rows


def _short(entry: object) -> str:
    """A value on one line."""
    if isinstance(entry, float):
        return f"{entry:.6g}"
    shown = entry if isinstance(entry, str) else json.dumps(plain(entry), default=str)
    return shown if len(shown) <= 500 else f"{shown[:500]} …"


def log_end(file: Path) -> str:
    """The last lines of a log, or nothing where there is none."""
    try:
        with file.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - LOG_BYTES))
            lines = stream.read(LOG_BYTES).decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(deque(lines, LOG_LINES)).strip()
