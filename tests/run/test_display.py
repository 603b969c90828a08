"""What a person sees while a cell runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dfqbench.run.execute.events import (
    Event,
    Phase,
    PhaseStarted,
    Probed,
    Progress,
    SharedJob,
    Sharing,
    SourceReady,
    Warned,
)
from dfqbench.run.schedule.progress import Display


def shown(*events: Event, terminal: bool = True) -> str:
    stream = io.StringIO()
    display = Display(Console(file=stream, force_terminal=terminal, width=120, color_system=None), 1)
    view = display.begin("cell")
    for event in events:
        view.event(event)
    display.close()
    return stream.getvalue()


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([PhaseStarted(Phase.SETUP)], "loading"),
        ([PhaseStarted(Phase.EVALUATION)], "evaluating"),
        ([Progress(Phase.SYNTHESIS, 1, 4, {"loss": 0.123456})], "synthesizing, loss 0.1235"),
        ([Progress(Phase.QUANTIZATION, 1, 4, {})], "quantizing"),
        ([SharedJob(Sharing.ONE_LOOP, 2)], "cell and 2 more"),
    ],
)
def test_a_bar_shows_the_phase_the_loss_and_the_members(events: list[Event], text: str) -> None:
    assert text in shown(*events)
    assert shown(*events, terminal=False) == ""


def test_warnings_are_lines_everywhere() -> None:
    for terminal in (True, False):
        assert "cell: warning: no checkpoint" in shown(Warned("no checkpoint"), terminal=terminal)


def test_other_events_change_nothing() -> None:
    found = shown(SourceReady(shared=True), Probed(Phase.SETUP, 2.0), SharedJob(Sharing.ALONE, 2))
    assert "more" not in found
    assert "loading" not in found
