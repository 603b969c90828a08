"""Sources on disk: a fixed set of images is paid for once and serves every bit-width."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from dfqbench.api.batch import SampleSource
from dfqbench.api.errors import PluginError
from dfqbench.run.store.files import write_json
from dfqbench.run.store.source_description import DESCRIPTION, read_description
from dfqbench.run.store.state_file import read_state, write_state

STATE = "state.safetensors"
HOST = "dfqbench"
"""Package whose classes may always be built from a saved state."""


def shared_state(source: SampleSource) -> dict[str, Any] | None:
    """The state to save a fixed source by, or None where its class cannot be built from one (no `from_state`)."""
    return source.state_dict() if callable(getattr(type(source), "from_state", None)) else None


def save_source(
    source: SampleSource,
    folder: Path,
    environment: str,
    cost: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
) -> bool:
    """Saves a fixed source for other cells, where its class can be built from a state.

    Args:
        source: what `synthesize` returned.
        folder: of this source's identity.
        environment: identity of the environment.
        cost: what it cost alone: `seconds`, `counts`, `peak_mib`.
        state: what `shared_state` returned, where that was asked before.

    Returns:
        Whether it was saved: its class must have `from_state`, and its state hold tensors and plain data only.
    """
    kind = type(source)
    state = shared_state(source) if state is None else state
    if state is None:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_state(folder / STATE, state)
    except PluginError:
        return False
    # The description comes last: without it the folder holds no source.
    name = f"{kind.__module__}:{kind.__qualname__}"
    write_json(folder / DESCRIPTION, {"class": name, "environment": environment, "cost": dict(cost)})
    return True


def load_source(
    folder: Path, device: torch.device, environment: str | None, packages: Collection[str] = ()
) -> tuple[SampleSource, dict[str, Any]] | None:
    """Loads a saved source.

    Args:
        folder: of the source's identity.
        device: where its tensors go.
        environment: identity of the environment that it must come from, or None: any.
        packages: besides the host's own, the packages whose classes may be built: that of the method. The file names
            a class, and a stranger's file must not choose what is imported.

    Returns:
        The source, and its cost with its `id`; None where nothing usable is saved, so that it is made again.
    """
    description = read_description(folder, environment)
    if description is None:
        return None
    try:
        module, _, name = str(description["class"]).partition(":")
        if module.partition(".")[0] not in {HOST, *packages}:
            return None
        state = read_state(folder / STATE, device)
        kind: Any = importlib.import_module(module)
        for part in name.split("."):
            kind = getattr(kind, part)
        source: SampleSource = kind.from_state(state)
    except Exception:
        return None
    return source, description["cost"] | {"id": folder.name}
