"""The caption of a table: what its numbers were measured on, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dfqbench.report.columns import coverage
from dfqbench.report.labels import model_name, scheme_label, short_names
from dfqbench.report.sheet import Sheet
from dfqbench.report.status import finished
from dfqbench.report.values import duration, spread
from dfqbench.run.evaluate.accuracy import standard_error
from dfqbench.run.store.record import Record

MOST_LAYERS = 4
"""Layers left in float that the caption names before it counts."""


def title(sheet: Sheet) -> str:
    """Target, evaluation set, budget, and what else all records share, on one line."""
    record = _fullest(sheet)
    shared = [name for dimension, name in sheet.shared.items() if dimension not in {"target", "budget"}]
    parts = []
    if "target" in {*sheet.layout.rows, *sheet.layout.columns}:
        parts.append(", ".join(_distinct(entry.target for entry in sheet.records)))
    else:
        parts.append(_evaluated(record))
    if "budget" not in {*sheet.layout.rows, *sheet.layout.columns}:
        parts.append(f"budget {record.budget or 'unknown'}")
    return ", ".join([*parts, *shared])


def caption(sheet: Sheet, hardware: Mapping[str, str]) -> list[str]:
    """What a reader must know to compare the numbers, one statement a line.

    Args:
        sheet: the table's records.
        hardware: words for the environments that records name.
    """
    names = short_names(sheet.models)
    lines = [
        _about(sheet),
        _seeds(sheet),
        _full_precision(sheet, names),
        _standard_error(sheet),
        *_diagnosed(sheet),
        f"protocol {', '.join(_distinct(scheme_label(record).partition('@')[2] for record in sheet.records))}; "
        f"precision {', '.join(_distinct(record.precision for record in sheet.records))}",
        *_coverage(sheet, names),
        _hardware(sheet, hardware),
        _versions(sheet),
        _cost(sheet),
    ]
    if sheet.superseded:
        lines.append(f"{sheet.superseded} older cells of the same places (other code or environment) are left out")
    if any(names[model] != model for model in sheet.models):
        lines.append("models: " + ", ".join(sheet.models))
    return [line for line in lines if line]


def _evaluated(record: Record) -> str:
    target, dataset = record.target or "unknown target", record.dataset.name
    size = "" if record.dataset.n is None else f"{record.dataset.n:,} images"
    found = ", ".join(part for part in (dataset if dataset != target else "", size, _subset(record)) if part)
    return f"{target}{f' ({found})' if found else ''}"


def _fullest(sheet: Sheet) -> Record:
    """The record that says most about the evaluation set."""
    return max(sheet.records, key=lambda record: (record.dataset.n is not None, record.dataset.name))


def _subset(record: Record) -> str:
    """What the evaluation set is a part of, and which part of it was used."""
    parent, part = record.dataset.subset_of, record.dataset.subset
    return ", ".join(entry for entry in (f"a subset of {parent}" if parent else "", part) if entry)


def _about(sheet: Sheet) -> str:
    """What the values are."""
    values = sheet.layout.values
    percent = [entry.header for entry in values if entry.percent]
    parts = (
        [f"{' and '.join([', '.join(percent[:-1]), percent[-1]] if percent[1:] else percent)} in percent"]
        if percent
        else []
    )
    if {"top1", "top5", "drop", "agreement"} & {entry.name for entry in values}:
        parts.append("last state of the student (no selection on the evaluation set)")
    parts += [entry.about for entry in values if entry.about]
    return "; ".join(parts)


def _seeds(sheet: Sheet) -> str:
    seeds = sorted({record.seed for record in sheet.records if record.seed is not None})
    if not seeds:
        return ""
    shown = ", ".join(map(str, seeds))
    if len(seeds) == 1:
        return f"seed {shown}"
    return f"seeds {shown}: mean ± sample standard deviation (number of seeds)"


def _full_precision(sheet: Sheet, names: Mapping[str, str]) -> str:
    parts = []
    for model, records in _by_model(sheet).items():
        parts.append(f"{names[model]} {spread(record.fp_top1 for record in records)}")
    return f"full precision, re-measured in this run: {', '.join(parts)}"


def _by_model(sheet: Sheet) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {model: [] for model in sheet.models}
    for record in sheet.records:
        found[model_name(record)].append(record)
    return found


def _standard_error(sheet: Sheet) -> str:
    if all(value.diagnosed for value in sheet.layout.values):
        return ""
    good = [record for record in sheet.records if finished(record)]
    errors = [known for record in good if (known := _error_of(record)) is not None]
    return f"binomial standard error of a top-1: {spread(errors)}" if errors else ""


def _error_of(record: Record) -> float | None:
    """The recorded standard error in percent, else sqrt(p (1 - p) / n)."""
    if record.top1_se is not None or record.top1 is None or not record.dataset.n:
        return record.top1_se
    return standard_error(record.top1, record.dataset.n)


def _diagnosed(sheet: Sheet) -> list[str]:
    """How many images were diagnosed, and what their classes are."""
    if not any(value.diagnosed for value in sheet.layout.values):
        return []
    measured = [record for record in sheet.records if record.diagnostics.images is not None]
    if not measured:
        return []
    counts = _distinct(f"{record.diagnostics.images:,}" for record in measured)
    named = _distinct(r.label or r.method for r in measured if r.diagnostics.classes_of == "teacher")
    classes = f"the teacher's answers where a source gives none ({', '.join(named)})" if named else ""
    whose = "the source's labels" if any(record.diagnostics.classes_of == "labels" for record in measured) else ""
    said = ", ".join(part for part in (whose, classes) if part)
    return [f"diagnosed: {', '.join(counts)} images of each cell" + (f"; classes: {said}" if said else "")]


def _coverage(sheet: Sheet, names: Mapping[str, str]) -> list[str]:
    lines = []
    for model, records in _by_model(sheet).items():
        shares = [share for record in records if (share := coverage(record)) is not None]
        if not shares:
            continue
        layers = _distinct(layer for r in records if r.coverage is not None for layer in r.coverage.float_layers)
        more = f" and {len(layers) - MOST_LAYERS} more" if len(layers) > MOST_LAYERS else ""
        left = f" (in float: {', '.join(layers[:MOST_LAYERS])}{more})" if layers else ""
        lines.append(f"{names[model]} {spread(shares, 1)} %{left}")
    return [f"coverage, share of multiply-accumulates quantized: {'; '.join(lines)}"] if lines else []


def _hardware(sheet: Sheet, hardware: Mapping[str, str]) -> str:
    """The hardware in words where they are known, else the id of the environment."""
    environments = _distinct(record.environment for record in sheet.records)
    known = _distinct(hardware.get(environment, f"environment {environment}") for environment in environments)
    return f"hardware: {'; '.join(known)}" if known else ""


def _versions(sheet: Sheet) -> str:
    """Distributions and versions that methods and quantizers came from."""
    found = {name for r in sheet.records for name in (r.versions.method, r.versions.quantizer)}
    # A part of the host's own says only its name where another says the version too.
    known = [name for name in _distinct(found) if not any(other.startswith(f"{name} ") for other in found)]
    return f"versions: {', '.join(known)}" if known else ""


def _cost(sheet: Sheet) -> str:
    walls = [known for record in sheet.records if (known := record.seconds.wall) is not None]
    return f"{len(sheet.records)} cells, {duration(sum(walls))} in all" if walls else f"{len(sheet.records)} cells"


def _distinct(values: Iterable[str]) -> list[str]:
    return sorted({entry for entry in values if entry})
