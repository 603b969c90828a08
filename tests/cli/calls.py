"""The command line called in this process, for tests of what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BROKEN = Path(__file__).parents[1] / "plugins" / "broken" / "raises_on_import.py"
CONTROL = ("run", "--grid", "smoke", "--methods", "noise")


@dataclass(frozen=True)
class Said:
    """What a call of the command line answered."""

    status: int
    out: str
    err: str


Call = Callable[..., Said]


def refused(said: Said, *parts: str) -> str:
    """Checks that a request was refused in one line before anything was written; returns the line."""
    assert said.status == 2, said
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("dfqbench: error: ")
    for part in parts:
        assert part in line, line
    assert "; " in line, f"it does not say what to do: {line}"
    assert list(Path().iterdir()) == [], "something was written"
    return line
