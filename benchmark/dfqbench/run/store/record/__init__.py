"""The record: one JSON object an attempt, with a type.

Everything that reads records reads attributes of these classes; `dfqbench.run.store.record.build` makes records.
`python -m dfqbench.run.store.record` prints the JSON schema, as kept in `docs/reference/record.schema.json`.
"""

from __future__ import annotations

from dfqbench.run.store.record.parts import (
    Card,
    Counts,
    Coverage,
    Dataset,
    Diagnostics,
    Error,
    LayerDistance,
    Model,
    Origin,
    Part,
    PeakMemory,
    Preprocessing,
    SchemeFacts,
    Seconds,
    Snapshot,
    TrainingPoint,
    Versions,
)
from dfqbench.run.store.record.record import SCHEMA, Record

__all__ = [
    "SCHEMA",
    "Card",
    "Counts",
    "Coverage",
    "Dataset",
    "Diagnostics",
    "Error",
    "LayerDistance",
    "Model",
    "Origin",
    "Part",
    "PeakMemory",
    "Preprocessing",
    "Record",
    "SchemeFacts",
    "Seconds",
    "Snapshot",
    "TrainingPoint",
    "Versions",
]
