"""Observes finished records: appends the status of each to a file beside this one, `<stem>.seen`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dfqbench.api import hookimpl


@hookimpl
def dfqbench_record_finished(record: Mapping[str, Any]) -> None:
    """Writes one line a record."""
    with Path(__file__).with_suffix(".seen").open("a", encoding="utf-8") as stream:
        stream.write(f"{record['method']} {record['status']}\n")
