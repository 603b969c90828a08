"""Hardware in words, from the environment files beside a run's records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def describe_hardware(run: Path) -> dict[str, str]:
    """Return words for every environment of a run, by the environment's id."""
    words: dict[str, str] = {}
    for name, environment in environments(run).items():
        first, other = words.get(name.partition(".")[0]), _words(environment)
        # Further files of one environment are those of other hardware (`write_environment`).
        words[name.partition(".")[0]] = other if first is None else f"{first} and {other}"
    return words


def environments(run: Path) -> dict[str, dict[str, Any]]:
    """Return every readable description of an environment (`environments/<id>.json`) in a run's folder, by its id."""
    described = {}
    for path in sorted(run.glob("environments/*.json")):
        try:
            environment = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(environment, dict):
            described[path.stem] = environment
    return described


def _words(environment: Mapping[str, Any]) -> str:
    device = str(environment.get("device") or "unknown device")
    name = environment.get("device_name") or environment.get("cpu")
    cores = environment.get("cores")
    packages, kernels = environment.get("packages"), str(environment.get("kernels") or "")
    torch = packages.get("torch") if isinstance(packages, Mapping) else None
    parts = [
        f"{device}: {name}" if name else device,
        f"{cores} cores" if cores and device == "cpu" else "",
        f"torch {torch}" if torch else "",
        kernels if kernels.startswith("triton") else "",
        # Older records come from a version with compiled CPU kernels.
        "compiled passes" if str(environment.get("passes") or "").startswith("compiled") else "",
    ]
    return ", ".join(filter(None, parts))
