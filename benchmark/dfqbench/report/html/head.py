"""The head of the report's page: when, where and how its records were made, and the list of methods."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqbench.report.formatting import ABSENT
from dfqbench.report.record_access import control_rank, finished, model_name, short_names
from dfqbench.run.store.record import Record

MOST_NAMED = 8  # networks that are named; more are counted
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")


@dataclass(frozen=True, slots=True)
class MethodFacts:
    """What is known about a method besides its numbers."""

    name: str
    title: str
    year: str
    paper: str
    link: str  # an `https:` address, or empty
    fidelity: str
    version: str
    control: bool


def head(
    records: Sequence[Record],
    hardware: Mapping[str, str],
    environments: Mapping[str, Mapping[str, Any]],
    commands: Mapping[str, str],
) -> list[tuple[str, str]]:
    """Return names and values of what holds for the whole page; arguments as in `report_page`."""
    dates = sorted(record.finished_at[:10] for record in records if record.finished_at)
    counts = Counter("finished" if finished(record) else record.status or "failed" for record in records)
    seeds = sorted({record.seed for record in records if record.seed is not None})
    used = list(dict.fromkeys(record.environment for record in records))
    models = list(short_names(sorted({model_name(record) for record in records})).values())
    more = f" and {len(models) - MOST_NAMED} more" if len(models) > MOST_NAMED else ""
    facts = (
        ("date", " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else ""),
        ("machine", "; ".join(dict.fromkeys(hardware[name] for name in used if name in hardware))),
        ("command", "\n".join(dict.fromkeys(filter(None, commands.values())))),
        ("version", "; ".join(dict.fromkeys(filter(None, map(_version, records, (environments,) * len(records)))))),
        ("cells", ", ".join(f"{number:,} {state}" for state, number in counts.most_common())),
        ("seeds", ", ".join(map(str, seeds))),
        ("networks", ", ".join(models[:MOST_NAMED]) + more),
        ("on", ", ".join(sorted({_evaluated(record) for record in records if record.target}))),
        ("budget", ", ".join(sorted({record.budget for record in records if record.budget}))),
    )
    return [(name, value) for name, value in facts if value]


def read_command(run: Path) -> str:
    """Return the command that a run's folder says it was made by; empty where it does not."""
    try:
        plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    command = plan.get("command") if isinstance(plan, dict) else None
    return command if isinstance(command, str) else ""


def method_list(records: Iterable[Record]) -> list[MethodFacts]:
    """Return the methods of these records by year, controls last."""
    made: dict[tuple[str, str], MethodFacts] = {}
    for record in records:
        version = record.versions.method
        years = _YEAR.findall(record.paper)
        link = record.link if record.link.startswith("https://") else ""
        facts = MethodFacts(
            record.method or "unknown",
            record.title or ABSENT,
            years[-1] if years else ABSENT,
            record.paper or ABSENT,
            link,
            record.fidelity or ABSENT,
            version or ABSENT,
            control_rank(record) > 0,
        )
        made[facts.name, facts.version] = facts
    return sorted(made.values(), key=lambda facts: (facts.control, facts.year, facts.name))


def _version(record: Record, environments: Mapping[str, Mapping[str, Any]]) -> str:
    packages = environments.get(record.environment, {}).get("packages")
    version = packages.get("dfqbench") if isinstance(packages, Mapping) else None
    revision = f"revision {record.revision[:12]}" if record.revision else ""
    return ", ".join(filter(None, (f"dfqbench {version}" if version else "", revision)))


def _evaluated(record: Record) -> str:
    return record.target + ("" if record.dataset.n is None else f" ({record.dataset.n:,} images)")
