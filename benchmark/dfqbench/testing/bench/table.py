"""The bench's rows as a table, beside the project's bars."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dfqbench.api.errors import InputError

GENERATOR_KINDS = ("gdfq", "clusterq", "acq", "temporal")
FAST = "mixed-bfloat16"
COLUMNS = (
    *("step", "network", "batch", "precision", "on", "ours"),
    *("x textbook", "bar", "/ bare networks", "limit", "MiB", "textbook's MiB"),
)


def bar(row: Mapping[str, Any]) -> float | None:
    """How many times faster than the textbook a step shall be; None where no bar is set."""
    if row["precision"] != FAST:
        return 2.0 if row["what"] in {*GENERATOR_KINDS, "zeroq"} else None
    if row["what"] in GENERATOR_KINDS:
        return 4.0 if row["shape"].startswith("CIFAR") else 3.0
    return 3.0 if row["what"] == "zeroq" else None


def limit(row: Mapping[str, Any]) -> float | None:
    """How many times the bare networks' time a step may take; None where no limit is set."""
    if row["what"] in GENERATOR_KINDS:
        return 1.3
    return {"zeroq": 1.25, "evaluate": round(1 / 0.9, 2)}.get(row["what"])


def render(rows: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table; a value that misses its bar is marked with `!`.

    Args:
        rows: `Row.as_dict()`.
    """
    from tabulate import tabulate

    return tabulate([_cells(row) for row in rows], headers=COLUMNS, tablefmt="github", disable_numparse=True)


def _cells(row: Mapping[str, Any]) -> list[str]:
    speedup, overhead = row["textbook"] / row["ours"], row["ours"] / row["floor"]
    least, most = bar(row), limit(row)
    return [
        row["what"],
        row["shape"],
        str(row["batch"]),
        row["precision"],
        _machine(row),
        f"{row['ours'] * 1000:.0f} ms",
        f"{speedup:.2f}" + (" !" if least is not None and speedup < least else ""),
        "" if least is None else f">= {least:g}",
        f"{overhead:.2f}" + (" !" if most is not None and overhead > most else ""),
        "" if most is None else f"<= {most:g}",
        *_memory(row),
    ]


def _machine(row: Mapping[str, Any]) -> str:
    """The GPU, or how many threads of the CPU."""
    device = str(row.get("device", "cpu"))
    return f"{row['threads']} thread{'' if row['threads'] == 1 else 's'}" if device == "cpu" else device


def _memory(row: Mapping[str, Any]) -> tuple[str, str]:
    """Peaks of both; no step may need more than the textbook."""
    if "ours_mib" not in row:
        return "", ""
    ours, textbook = row["ours_mib"], row["textbook_mib"]
    return f"{ours:.0f}" + (" !" if ours > textbook else ""), f"{textbook:.0f}"


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a file that `dfqbench bench --out` or pytest-benchmark wrote.

    Raises:
        InputError: it holds no rows of the bench.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = found["rows"] if "rows" in found else [entry["extra_info"] for entry in found["benchmarks"]]
        for row in rows:
            _cells(row)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise InputError(
            f"{path} holds no bench: {type(error).__name__}: {error}",
            "give a file made by `dfqbench bench --out` or by `pytest tests/bench --benchmark-json`",
        ) from error
    return list(rows)
