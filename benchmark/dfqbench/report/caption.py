"""The caption of a table: what its numbers were measured on, and how."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from dfqbench.report.sheet import Sheet, model_name, scheme_label
from dfqbench.report.values import Record, duration, items, number, spread, text, value

MOST_LAYERS = 4
"""Layers left in float that the caption names before it counts."""


def title(sheet: Sheet) -> str:
    """Target, evaluation set and budget on one line."""
    record = _fullest(sheet)
    target, dataset = text(record, "target", "unknown target"), text(record, "dataset.name")
    images = number(record, "dataset.n")
    size = "" if images is None else f"{images:,.0f} images"
    subset = _subset(record)
    evaluated = ", ".join(part for part in (dataset if dataset != target else "", size, subset) if part)
    return f"{target}{f' ({evaluated})' if evaluated else ''}, budget {text(record, 'budget', 'unknown')}"


def caption(sheet: Sheet, hardware: Mapping[str, str]) -> list[str]:
    """What a reader must know to compare the numbers, one statement a line.

    Args:
        sheet: the table's records.
        hardware: words for the environments that records name.
    """
    names = short_names(sheet.models)
    lines = [
        "top-1 and drop in percent; last state of the student (no selection on the evaluation set); synthesis: time "
        "of a stand-alone synthesis",
        _seeds(sheet),
        _full_precision(sheet, names),
        _standard_error(sheet),
        f"protocol {', '.join(_distinct(scheme_label(record).partition('@')[2] for record in sheet.records))}; "
        f"precision {', '.join(_distinct(text(record, 'precision') for record in sheet.records))}",
        *_coverage(sheet, names),
        _hardware(sheet, hardware),
        _cost(sheet),
    ]
    if sheet.superseded:
        lines.append(f"{sheet.superseded} older cells of the same places (other code or environment) are left out")
    if any(names[model] != model for model in sheet.models):
        lines.append("models: " + ", ".join(sheet.models))
    return [line for line in lines if line]


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Model names without their family, where that stays unique."""
    full = list(models)
    short = [model.partition(":")[2] or model for model in full]
    return {model: name if short.count(name) == 1 else model for model, name in zip(full, short, strict=True)}


def _fullest(sheet: Sheet) -> Record:
    """The record that says most about the evaluation set."""
    return max(sheet.records, key=lambda record: (value(record, "dataset.n") is not None, text(record, "dataset.name")))


def _subset(record: Record) -> str:
    """What the evaluation set is a part of, and which part of it was used."""
    parent, part = text(record, "dataset.subset_of"), text(record, "dataset.subset")
    return ", ".join(entry for entry in (f"a subset of {parent}" if parent else "", part) if entry)


def _seeds(sheet: Sheet) -> str:
    seeds = sorted({int(seed) for record in sheet.records if (seed := number(record, "seed")) is not None})
    if not seeds:
        return ""
    shown = ", ".join(map(str, seeds))
    if len(seeds) == 1:
        return f"seed {shown}"
    return f"seeds {shown}: mean ± sample standard deviation (number of seeds)"


def _full_precision(sheet: Sheet, names: Mapping[str, str]) -> str:
    parts = []
    for model in sheet.models:
        known = [number(record, "fp_top1") for record in sheet.records if model_name(record) == model]
        parts.append(f"{names[model]} {spread(known)}")
    return f"full precision, re-measured in this run: {', '.join(parts)}"


def _standard_error(sheet: Sheet) -> str:
    errors = [known for record in sheet.records if (known := _error_of(record)) is not None]
    return f"binomial standard error of a top-1: {spread(errors)}" if errors else ""


def _error_of(record: Record) -> float | None:
    """The recorded standard error in percent, else sqrt(p (1 - p) / n)."""
    recorded = number(record, "top1_se")
    top1, images = number(record, "top1"), number(record, "dataset.n")
    if recorded is not None or top1 is None or not images or not 0 <= top1 <= 100:
        return recorded
    return math.sqrt(top1 * (100 - top1) / images)


def _coverage(sheet: Sheet, names: Mapping[str, str]) -> list[str]:
    lines = []
    for model in sheet.models:
        records = [record for record in sheet.records if model_name(record) == model]
        shares = [share for record in records if (share := _share(record)) is not None]
        if not shares:
            continue
        layers = _distinct(str(layer) for record in records for layer in items(record, "coverage.float_layers"))
        more = f" and {len(layers) - MOST_LAYERS} more" if len(layers) > MOST_LAYERS else ""
        left = f" (in float: {', '.join(layers[:MOST_LAYERS])}{more})" if layers else ""
        lines.append(f"{names[model]} {spread(shares, 1)} %{left}")
    return [f"coverage, share of multiply-accumulates quantized: {'; '.join(lines)}"] if lines else []


def _share(record: Record) -> float | None:
    done, total = number(record, "coverage.macs_quantized"), number(record, "coverage.macs_total")
    return None if done is None or not total else 100 * done / total


def _hardware(sheet: Sheet, hardware: Mapping[str, str]) -> str:
    """The hardware in words where they are known, else the id of the environment."""
    environments = _distinct(text(record, "environment") for record in sheet.records)
    known = _distinct(hardware.get(environment, f"environment {environment}") for environment in environments)
    return f"hardware: {'; '.join(known)}" if known else ""


def _cost(sheet: Sheet) -> str:
    walls = [known for record in sheet.records if (known := number(record, "seconds.wall")) is not None]
    return f"{len(sheet.records)} cells, {duration(sum(walls))} in all" if walls else f"{len(sheet.records)} cells"


def _distinct(values: Iterable[Any]) -> list[str]:
    return sorted({str(entry) for entry in values if entry})
