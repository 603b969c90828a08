"""Sources on disk: a fixed set of images is paid for once and serves every bit-width."""

from __future__ import annotations

import importlib
import json
import pickle
from pathlib import Path
from typing import Any

import torch

from dfqbench.api.batch import SampleSource
from dfqbench.run.store import write_json

STATE = "state.pt"
DESCRIPTION = "source.json"


def save_source(source: SampleSource, folder: Path, seconds: float) -> bool:
    """Saves a fixed source for other cells, where its class can be built from a state.

    Args:
        source: what `synthesize` returned.
        folder: of this source's identity.
        seconds: what it cost.

    Returns:
        Whether it was saved: its class must have `from_state`.
    """
    kind = type(source)
    if not callable(getattr(kind, "from_state", None)):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{STATE}.part"
    torch.save(source.state_dict(), temporary)
    temporary.replace(folder / STATE)
    # The description comes last: without it the folder holds no source.
    write_json(folder / DESCRIPTION, {"class": f"{kind.__module__}:{kind.__qualname__}", "seconds": seconds})
    return True


def load_source(folder: Path, device: torch.device) -> tuple[SampleSource, dict[str, Any]] | None:
    """Loads a saved source.

    Args:
        folder: of the source's identity.
        device: where its tensors go.

    Returns:
        The source and `{id, seconds}`; None where nothing usable is saved, so that it is made again.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        module, _, name = str(description["class"]).partition(":")
        state = torch.load(folder / STATE, map_location=device, weights_only=True)
        kind: Any = importlib.import_module(module)
        for part in name.split("."):
            kind = getattr(kind, part)
        source: SampleSource = kind.from_state(state)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, pickle.UnpicklingError):
        return None
    return source, {"id": folder.name, "seconds": float(description["seconds"])}
