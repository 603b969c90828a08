"""Titles and captions: what a table's numbers were measured on, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dfqbench.api.budget import BUDGETS
from dfqbench.report.formatting import duration, value_range
from dfqbench.report.metrics import coverage, in_cpu_seconds
from dfqbench.report.record_access import finished, model_name, scheme_label, short_names
from dfqbench.report.tables.pivot import Pivot
from dfqbench.run.evaluate.accuracy import standard_error
from dfqbench.run.store.record import Record
from dfqbench.run.store.status import SHARED

MOST_LAYERS = 4  # layers left in float that are named; more are counted


def title(pivot: Pivot) -> str:
    """Return target, evaluation set, budget, and what else all records share, on one line."""
    dimensions = pivot.layout.dimensions
    record = max(pivot.records, key=lambda record: (record.dataset.n is not None, record.dataset.name))
    targets = _distinct(record.target for record in pivot.records) if "target" in dimensions else [_evaluated(record)]
    budget = [] if "budget" in dimensions else [f"budget {record.budget or 'unknown'}"]
    shared = [name for dimension, name in pivot.shared.items() if dimension not in {"target", "budget"}]
    return ", ".join([", ".join(targets), *budget, *shared])


def caption(pivot: Pivot, hardware: Mapping[str, str]) -> list[str]:
    """Return what a reader must know to compare the numbers, one statement a line.

    `hardware` holds words for the environments that records name.
    """
    records, names = pivot.records, short_names(pivot.models)
    protocols = _distinct(scheme_label(record).partition("@")[2] for record in records)
    precisions = _distinct(record.precision for record in records)
    environments = _distinct(record.environment for record in records)
    lines = [
        _metrics(pivot),
        _seeds(records),
        _full_precision(pivot, names),
        _standard_error(pivot),
        _diagnosed(pivot),
        *_shortened(records),
        f"protocol {', '.join(protocols)}; precision {', '.join(precisions)}",
        _coverage(pivot, names),
        _list("hardware: ", _distinct(hardware.get(name, f"environment {name}") for name in environments), "; "),
        _list("versions: ", _versions(records)),
        _cost(records),
        *_shared(records),
    ]
    if pivot.superseded:
        lines.append(f"{pivot.superseded} older cells of the same places (other code or environment) are left out")
    if any(names[model] != model for model in pivot.models):
        lines.append("models: " + ", ".join(pivot.models))
    return [line for line in lines if line]


def _evaluated(record: Record) -> str:
    target, dataset = record.target or "unknown target", record.dataset
    parts = (
        dataset.name if dataset.name != target else "",
        "" if dataset.n is None else f"{dataset.n:,} images",
        f"a subset of {dataset.subset_of}" if dataset.subset_of else "",
        dataset.subset or "",
    )
    details = ", ".join(filter(None, parts))
    return f"{target} ({details})" if details else target


def _metrics(pivot: Pivot) -> str:
    metrics = pivot.layout.metrics
    *others, last = [metric.header for metric in metrics if metric.percent] or [""]
    parts = [f"{', '.join(others)} and {last} in percent" if others else f"{last} in percent"] if last else []
    if {"top1", "top5", "drop", "agreement"} & {metric.name for metric in metrics}:
        parts.append("last state of the student (no selection on the evaluation set)")
    return "; ".join(parts + [f"{metric.header}: {metric.about}" for metric in metrics if metric.about])


def _shortened(records: Iterable[Record]) -> list[str]:
    """Say how long the schedules of each budget are; nothing of the published ones and of unknown names."""
    budgets = (BUDGETS.get(name) for name in _distinct(record.budget for record in records))
    return [budget.shortened for budget in budgets if budget is not None and budget.shortened]


def _seeds(records: Iterable[Record]) -> str:
    seeds = sorted({record.seed for record in records if record.seed is not None})
    shown = ", ".join(map(str, seeds))
    if len(seeds) > 1:
        return f"seeds {shown}: mean ± sample standard deviation (number of seeds)"
    return f"seed {shown}" if seeds else ""


def _by_model(pivot: Pivot) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {model: [] for model in pivot.models}
    for record in pivot.records:
        groups[model_name(record)].append(record)
    return groups


def _full_precision(pivot: Pivot, names: Mapping[str, str]) -> str:
    parts = [
        f"{names[model]} {value_range(record.fp_top1 for record in records)}"
        for model, records in _by_model(pivot).items()
    ]
    return f"full precision, re-measured in this run: {', '.join(parts)}"


def _standard_error(pivot: Pivot) -> str:
    if all(metric.diagnosed for metric in pivot.layout.metrics):
        return ""
    errors = [error for record in pivot.records if finished(record) and (error := _error_of(record)) is not None]
    return f"binomial standard error of a top-1: {value_range(errors)}" if errors else ""


def _error_of(record: Record) -> float | None:
    """Return the recorded standard error in percent, else sqrt(p (1 - p) / n)."""
    if record.top1_se is not None or record.top1 is None or not record.dataset.n:
        return record.top1_se
    return standard_error(record.top1, record.dataset.n)


def _diagnosed(pivot: Pivot) -> str:
    """Return how many images were diagnosed, and what their classes are."""
    measured = [record for record in pivot.records if record.diagnostics.images is not None]
    if not measured or not any(metric.diagnosed for metric in pivot.layout.metrics):
        return ""
    counts = _distinct(f"{record.diagnostics.images:,}" for record in measured)
    unlabelled = _distinct(r.label or r.method for r in measured if r.diagnostics.classes_of == "teacher")
    classes = ["the source's labels"] if any(r.diagnostics.classes_of == "labels" for r in measured) else []
    if unlabelled:
        classes.append(f"the teacher's answers where a source gives none ({', '.join(unlabelled)})")
    return f"diagnosed: {', '.join(counts)} images of each cell" + _list("; classes: ", classes)


def _coverage(pivot: Pivot, names: Mapping[str, str]) -> str:
    parts = []
    for model, records in _by_model(pivot).items():
        shares = [share for record in records if (share := coverage(record)) is not None]
        layers = _distinct(layer for r in records if r.coverage is not None for layer in r.coverage.float_layers)
        more = f" and {len(layers) - MOST_LAYERS} more" if len(layers) > MOST_LAYERS else ""
        in_float = f" (in float: {', '.join(layers[:MOST_LAYERS])}{more})" if layers else ""
        if shares:
            parts.append(f"{names[model]} {value_range(shares, 1)} %{in_float}")
    return _list("coverage, share of multiply-accumulates quantized: ", parts, "; ")


def _versions(records: Iterable[Record]) -> list[str]:
    names = _distinct(name for record in records for name in (record.versions.method, record.versions.quantizer))
    # A name without a version is left out where another entry gives the version.
    return [name for name in names if not any(entry.startswith(f"{name} ") for entry in names)]


def _cost(records: tuple[Record, ...]) -> str:
    walls = [wall for record in records if (wall := record.seconds.wall) is not None]
    return f"{len(records)} cells" + (f", {duration(sum(walls))} in all" if walls else "")


def _shared(records: Iterable[Record]) -> list[str]:
    """Return for each flag of shared hardware what the times of its cells are."""
    lines = []
    for flag, why in SHARED.items():
        in_cpu = {in_cpu_seconds(record) for record in records if finished(record) and flag in record.flags}
        words = {True: "the CPU seconds of their one thread", False: "wall time, longer than alone"}
        times = [text for key, text in words.items() if key in in_cpu]
        if in_cpu:
            lines.append(f"{flag}: {why}; synthesis and quantization of these cells are {', or '.join(times)}")
    return lines


def _list(prefix: str, parts: Iterable[str], separator: str = ", ") -> str:
    text = separator.join(parts)
    return prefix + text if text else ""


def _distinct(texts: Iterable[str]) -> list[str]:
    return sorted({text for text in texts if text})
