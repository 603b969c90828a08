"""Titles and captions: what a table's numbers were measured on, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dfqbench.api.budget import BUDGETS
from dfqbench.report.comparison.ranks import Place
from dfqbench.report.comparison.wilson import wilson_error
from dfqbench.report.formatting import ABSENT, duration, value_range
from dfqbench.report.metrics import coverage, in_cpu_seconds, weight_terms
from dfqbench.report.record_access import finished, model_name, scheme_label, shared_by_all, short_names
from dfqbench.report.tables.labels import fidelity_notes
from dfqbench.report.tables.origin import LIVE, MEANING, OWN, changed_recipes, origin
from dfqbench.report.tables.pivot import Pivot
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
        _seeds(pivot),
        _binomial_error(pivot),
        _full_precision(pivot, names),
        *_not_distinguished(pivot, names),
        _diagnosed(pivot),
        *_shortened(records),
        f"protocol {', '.join(protocols)}; precision {', '.join(precisions)}",
        *_origins(pivot),
        _coverage(pivot, names),
        _terms(records),
        _list("hardware: ", _distinct(hardware.get(name, f"environment {name}") for name in environments), "; "),
        _list("versions: ", _versions(records)),
        _cost(records),
        *_shared(records),
        *fidelity_notes(heading.names.get("method", "") for heading in (*pivot.rows, *pivot.columns)),
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


def _seeds(pivot: Pivot) -> str:
    seeds = sorted({record.seed for record in pivot.records if record.seed is not None})
    named = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else ""
    if any(len(group) > 1 for group in _finished_groups(pivot)):
        return f"{named}; x ± s (n): mean and sample standard deviation over n seeds"
    return named


def _finished_groups(pivot: Pivot) -> list[list[Record]]:
    return [list(filter(finished, records)) for records in pivot.places.values()]


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


def _binomial_error(pivot: Pivot) -> str:
    if all(metric.diagnosed for metric in pivot.layout.metrics):
        return ""
    errors = [
        wilson_error(record.top1, record.dataset.n)
        for record in filter(finished, pivot.records)
        if record.top1 is not None and record.dataset.n
    ]
    single = any(len(group) == 1 for group in _finished_groups(pivot))
    shown = single and any(metric.of_images for metric in pivot.layout.metrics)
    what = "one seed: x ±e with the binomial error e" if shown else "binomial error of one seed"
    return f"{what} (half the Wilson interval for z = 1); of a top-1: {value_range(errors)}" if errors else ""


def _not_distinguished(pivot: Pivot, models: Mapping[str, str]) -> list[str]:
    """Return which methods have no mark, because the paired test does not tell them apart or there is no test."""
    if not any(metric.tested for metric in pivot.layout.metrics):
        return []
    tied, untested = [], []
    for group, ranking in zip(pivot.rivals, pivot.rankings, strict=True):
        where = f"{_group_name(pivot, group[0], models)}: " if len(pivot.rivals) > 1 else ""
        if ranking.like_noise:
            tied.append(f"{where}all, noise included")
        elif ranking.tied:
            tied.append(where + _methods(pivot, ranking.tied))
        elif ranking.second_tied:
            tied.append(f"{where}{_methods(pivot, ranking.second_tied)} (after the best)")
        if ranking.below:
            tied.append(f"{where}{' is below '.join(_method(pivot, place) for place in ranking.below)}")
        if ranking.untested:
            every = len(ranking.untested) == len(group) > 1
            untested.append(where + ("all" if every else _methods(pivot, ranking.untested)))
    why = "no best is marked without answers for each image, of the same seeds: "
    return [line for line in (_list("not distinguished: ", tied, "; "), _list(why, untested, "; ")) if line]


def _group_name(pivot: Pivot, place: Place, models: Mapping[str, str]) -> str:
    names = {**pivot.rows[place[0]].names, **pivot.columns[place[1]].names}
    return " ".join(models[name] if key == "model" else name for key, name in names.items() if key != "method")


def _methods(pivot: Pivot, places: Iterable[Place]) -> str:
    return ", ".join(_method(pivot, place) for place in places)


def _method(pivot: Pivot, place: Place) -> str:
    names = {**pivot.shared, **pivot.rows[place[0]].names, **pivot.columns[place[1]].names}
    return names["method"].partition(" (")[0]


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


def _origins(pivot: Pivot) -> list[str]:
    """Return what all students were made with and from, and the meaning of the columns that say it of each row."""
    shared, differing = pivot.compared
    lines = [] if shared.words == ABSENT else [f"students of all rows: {shared.words}"]
    if differing and "method" not in pivot.layout.rows:
        by_method: dict[str, list[Record]] = {}
        for place, records in sorted(pivot.places.items()):
            by_method.setdefault(_method(pivot, place), []).extend(records)
        lines.append(_list("students: ", (f"{name}: {origin(rs).words}" for name, rs in by_method.items()), "; "))
    lines += [text for name, text in MEANING.items() if name in differing or getattr(shared, name) in {OWN, LIVE}]
    lines.append(_list("(changed): other values than the recipe's, ", changed_recipes(pivot.records)))
    return lines


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


def _terms(records: Iterable[Record]) -> str:
    """Return which rows' weights are sums of several terms, which cost more operations than their bits say."""
    terms: dict[str, list[float]] = {}
    for record in records:
        if (mean := weight_terms(record)) is not None and mean > 1:
            terms.setdefault(record.label or record.method, []).append(mean)
    parts = (f"{label} {value_range(means, 2)}" for label, means in sorted(terms.items()))
    return _list("weights as sums of several terms, compare at equal bit operations (bops): ", parts)


def _versions(records: Iterable[Record]) -> list[str]:
    names = _distinct(name for record in records for name in (record.versions.method, record.versions.quantizer))
    # A name without a version is left out where another entry gives the version.
    return [name for name in names if not any(entry.startswith(f"{name} ") for entry in names)]


def _cost(records: tuple[Record, ...]) -> str:
    walls = [wall for record in records if (wall := record.seconds.wall) is not None]
    return f"{len(records)} cells" + (f", {duration(sum(walls))} in all" if walls else "")


def _shared(records: Sequence[Record]) -> list[str]:
    """Return for each flag of shared hardware what the times of its cells are."""
    lines = []
    everywhere = shared_by_all(records)
    for flag, why in SHARED.items():
        in_cpu = {in_cpu_seconds(record) for record in records if finished(record) and flag in record.flags}
        words = {True: "the CPU seconds of their one thread", False: "wall time, longer than alone"}
        times = [text for key, text in words.items() if key in in_cpu]
        if in_cpu:
            cells = "all" if flag in everywhere else "these"
            lines.append(f"{flag}: {why}; synthesis and quantization of {cells} cells are {', or '.join(times)}")
    return lines


def _list(prefix: str, parts: Iterable[str], separator: str = ", ") -> str:
    text = separator.join(parts)
    return prefix + text if text else ""


def _distinct(texts: Iterable[str]) -> list[str]:
    return sorted({text for text in texts if text})
