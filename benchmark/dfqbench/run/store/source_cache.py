"""Sources on disk: a fixed set of images is made once and serves every bit-width; their description needs no torch."""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.api.errors import PluginError
from dfqbench.run.store.files import write_json
from dfqbench.run.store.status import SHARED

if TYPE_CHECKING:
    import torch

    from dfqbench.api.batch import SampleSource

DESCRIPTION = "source.json"
STATE = "state.safetensors"
MOST_BYTES = 2**20
"""Size of the largest description that is read."""


def shared_state(source: SampleSource) -> dict[str, Any] | None:
    """Return the state to save a fixed source by, or None if its class has no `from_state` to build one with."""
    return source.state_dict() if callable(getattr(type(source), "from_state", None)) else None


def save_source(
    source: SampleSource,
    folder: Path,
    environment: str,
    cost: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
) -> bool:
    """Save a fixed source for other cells.

    Args:
        source: result of `synthesize`.
        folder: of this source's identity.
        environment: identity of the environment.
        cost: cost of making it: `seconds`, `cpu_seconds`, `counts`, `peak_mib`, and `flags` of its attempt.
        state: result of `shared_state`; None: it is called here.

    Returns:
        Whether it was saved: its class must have `from_state`, and its state hold tensors and plain data only.
    """
    from dfqbench.run.store.state_file import write_state

    state = shared_state(source) if state is None else state
    if state is None:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_state(folder / STATE, state)
    except PluginError:
        return False
    # The description comes last: without it the folder holds no source.
    name = f"{type(source).__module__}:{type(source).__qualname__}"
    write_json(folder / DESCRIPTION, {"class": name, "environment": environment, "cost": dict(cost)})
    return True


def load_source(
    folder: Path, device: torch.device, environment: str | None, packages: Collection[str] = ()
) -> tuple[SampleSource, dict[str, Any]] | None:
    """Load a saved source.

    Args:
        folder: of the source's identity.
        device: where its tensors go.
        environment: identity of the environment that it must come from, or None: any.
        packages: packages besides the host's own whose classes may be built, since the file names a class.

    Returns:
        The source, and its cost with its `id`; None if nothing usable is saved, so that it is made again.
    """
    from dfqbench.run.store.state_file import read_state

    description = read_description(folder, environment)
    if description is None:
        return None
    try:
        module, _, name = str(description["class"]).partition(":")
        if module.partition(".")[0] not in {"dfqbench", *packages}:
            return None
        state = read_state(folder / STATE, device)
        cls: Any = importlib.import_module(module)
        for part in name.split("."):
            cls = getattr(cls, part)
        source: SampleSource = cls.from_state(state)
    except Exception:
        return None
    return source, description["cost"] | {"id": folder.name}


def read_description(folder: Path, environment: str | None) -> dict[str, Any] | None:
    """Read what `save_source` wrote; None if nothing usable is saved for this environment (None: any)."""
    file = folder / DESCRIPTION
    try:
        if file.stat().st_size > MOST_BYTES:
            return None
        description: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        usable = environment is None or description["environment"] == environment
        cost = description["cost"]
        cost["seconds"] = float(cost["seconds"])
        cost["cpu_seconds"] = None if cost.get("cpu_seconds") is None else float(cost["cpu_seconds"])
        cost["flags"] = [flag for flag in SHARED if flag in cost.get("flags", ())]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return description if usable else None


def is_saved(folder: Path, environment: str | None) -> bool:
    """Whether a source of this environment (None: any) is saved in a folder."""
    return read_description(folder, environment) is not None
