"""The points at which the harness strikes, and the seeded choice among them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from dfqbench.testing.faults.toy import STEPS


@dataclass(frozen=True, slots=True)
class Fault:
    """One kill.

    Attributes:
        kind: what was going on: synthesis, quantization, checkpoint, record or evaluation.
        role: the process in which the point is reached: worker, evaluator or parent.
        point: the point.
        victim: who dies: `self`, `parent`; `tear`: the file is cut in half under its final name, then the process dies.
        skip: times that the process passes the point unharmed.
    """

    kind: str
    role: str
    point: str
    victim: str
    skip: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As JSON for the processes of the run."""
        return asdict(self)


KINDS = ("synthesis", "quantization", "checkpoint", "record", "evaluation")


def choose(count: int, seed: int) -> list[Fault]:
    """`count` faults, the same for the same seed, spread evenly over the kinds."""
    draw = random.Random(seed)  # noqa: S311 - not for secrets
    return [_one(KINDS[index % len(KINDS)], draw) for index in range(count)]


def _one(kind: str, draw: random.Random) -> Fault:
    anyone = draw.choice(("self", "parent"))
    if kind in {"synthesis", "quantization"}:
        point = draw.choice([f"{kind}:{step}" for step in range(1, STEPS + 1)])
        if kind == "synthesis" and draw.random() < 0.2:
            point = draw.choice(("rename:state.safetensors", "rename:source.json"))
        return Fault(kind, "worker", point, anyone)
    if kind == "checkpoint":
        point = draw.choice(("part:checkpoint", "rename:checkpoint"))
        victim = "tear" if point.startswith("rename") and draw.random() < 0.5 else anyone
        return Fault(kind, "worker", point, victim, draw.randrange(STEPS))
    if kind == "record":
        point = draw.choice(("part:record.json", "rename:record.json", "open:job.json", "rename:table.txt"))
        return Fault(kind, "parent", point, "self", 0 if point == "rename:table.txt" else draw.randrange(2))
    return Fault(kind, "evaluator", "open:student.json", anyone, draw.randrange(2))


def counted(faults: Iterable[Fault]) -> dict[str, int]:
    """Number of faults of each kind."""
    found = list(faults)
    return {kind: sum(fault.kind == kind for fault in found) for kind in KINDS}
