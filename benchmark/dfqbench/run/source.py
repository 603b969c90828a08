"""Sources on disk: a fixed set of images is paid for once and serves every bit-width."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dfqbench.api.batch import SampleSource
from dfqbench.run.saved import DESCRIPTION, read_description
from dfqbench.run.store import write_json

STATE = "state.pt"


def save_source(source: SampleSource, folder: Path, environment: str, cost: Mapping[str, Any]) -> bool:
    """Saves a fixed source for other cells, where its class can be built from a state.

    Args:
        source: what `synthesize` returned.
        folder: of this source's identity.
        environment: identity of the environment.
        cost: what it cost alone: `seconds`, `counts`, `peak_mib`.

    Returns:
        Whether it was saved: its class must have `from_state`.
    """
    kind = type(source)
    if not callable(getattr(kind, "from_state", None)):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{STATE}.{os.getpid()}.part"
    with temporary.open("wb") as stream:
        torch.save(source.state_dict(), stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / STATE)
    # The description comes last: without it the folder holds no source.
    name = f"{kind.__module__}:{kind.__qualname__}"
    write_json(folder / DESCRIPTION, {"class": name, "environment": environment, "cost": dict(cost)})
    return True


def load_source(
    folder: Path, device: torch.device, environment: str | None
) -> tuple[SampleSource, dict[str, Any]] | None:
    """Loads a saved source.

    Args:
        folder: of the source's identity.
        device: where its tensors go.
        environment: identity of the environment that it must come from, or None: any.

    Returns:
        The source, and its cost with its `id`; None where nothing usable is saved, so that it is made again.
    """
    description = read_description(folder, environment)
    if description is None:
        return None
    try:
        module, _, name = str(description["class"]).partition(":")
        state = torch.load(folder / STATE, map_location=device, weights_only=True)
        kind: Any = importlib.import_module(module)
        for part in name.split("."):
            kind = getattr(kind, part)
        source: SampleSource = kind.from_state(state)
    except Exception:
        return None
    return source, description["cost"] | {"id": folder.name}
