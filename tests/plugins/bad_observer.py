"""Observes finished records badly: changes the record that it was shown, then fails."""

from __future__ import annotations

from typing import Any

from dfqbench.api import hookimpl


@hookimpl
def dfqbench_record_finished(record: dict[str, Any]) -> None:
    record["status"] = "spoilt"
    record["scheme"]["label"] = "spoilt"
    raise SystemExit(1)
