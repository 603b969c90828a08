"""Times that papers print, each with where it was read. They live once, in `published_times.csv`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources

from dfqbench.api.errors import unknown_name
from dfqbench.report.escape import markdown
from dfqbench.report.field import FIELD_FORMATS, FieldFormat
from dfqbench.report.published import dataset_key, method_key, model_key
from dfqbench.report.values import ABSENT


@dataclass(frozen=True, slots=True)
class PrintedTime:
    """One printed time or ratio. Every field is as printed; empty where the source does not say.

    Attributes:
        method: whose time.
        model: network.
        dataset: data set.
        bits: width of weights and activations.
        quantity: what was timed.
        value: number, range or bound.
        unit: of the value.
        hardware: what it was timed on.
        source: where it was read.
        notes: what the source adds.
    """

    method: str
    model: str
    dataset: str
    bits: str
    quantity: str
    value: str
    unit: str
    hardware: str
    source: str
    notes: str


_COLUMNS = tuple(field.name for field in fields(PrintedTime))
_SHOWN = ("method", "model", "bits", "quantity", "time", "hardware", "printed in")


@cache
def published_times() -> tuple[PrintedTime, ...]:
    """Every printed time of the data file, in its order."""
    text = resources.files("dfqbench.report").joinpath("published_times.csv").read_text(encoding="utf-8")
    return tuple(PrintedTime(**{name: row[name] for name in _COLUMNS}) for row in csv.DictReader(text.splitlines()))


def select_times(
    times: Iterable[PrintedTime],
    *,
    method: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    bits: str | None = None,
) -> list[PrintedTime]:
    """Times that match everything that is given; a source that does not name network, data set or bits matches any.

    Args:
        times: to choose from.
        method: as printed or as named here, in any case.
        model: as printed or as named here.
        dataset: as printed or as the target is named here.
        bits: for example `w4a4`; a source names one width for both operands.
    """
    return [
        time
        for time in times
        if (method is None or method.lower() in {time.method.lower(), method_key(time.method)[0]})
        and (model is None or time.model in {"", "any"} or model_key(model) == model_key(time.model))
        and (dataset is None or not time.dataset or dataset_key(dataset) == dataset_key(time.dataset))
        and (bits is None or not time.bits or bits.lower() == f"w{time.bits}a{time.bits}")
    ]


def render_times(times: Sequence[PrintedTime], fmt: FieldFormat = "text") -> str:
    """Renders times with their sources, in the order of the data file.

    Args:
        times: to show.
        fmt: `text` and `md` for people, `csv` and `json` for programs.

    Raises:
        UsageError: the format is unknown.
    """
    from tabulate import tabulate

    if fmt not in FIELD_FORMATS:
        raise unknown_name("format", fmt, FIELD_FORMATS)
    if fmt == "json":
        return json.dumps([asdict(time) for time in times], indent=2) + "\n"
    if fmt == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(time) for time in times)
        return out.getvalue()
    if not times:
        return "no printed times\n"
    rows = [
        [
            markdown(entry) if fmt == "md" else entry
            for entry in (
                time.method,
                time.model or ABSENT,
                time.bits or ABSENT,
                time.quantity,
                f"{time.value} {time.unit}".strip(),
                time.hardware or ABSENT,
                time.source,
            )
        ]
        for time in times
    ]
    widths = [None if fmt == "md" else width for width in (22, 12, None, 24, 14, None, 30)]
    table = tabulate(
        rows, _SHOWN, tablefmt="pipe" if fmt == "md" else "simple", disable_numparse=True, maxcolwidths=widths
    )
    lines = "\n".join(line.rstrip() for line in table.splitlines())
    return f"{lines}\n\nTimes of different sources compare only where hardware and quantity are the same.\n"
