from __future__ import annotations

import io

import pytest
from rich.console import Console

from dfqbench.run.execute.events import Event, Phase, PhaseStarted, Probed, Progress, SharedJob, Sharing, Warned
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
    ("event", "text"),
    [
        (PhaseStarted(Phase.SETUP), "loading"),
        (PhaseStarted(Phase.EVALUATION), "evaluating"),
        (Progress(Phase.SYNTHESIS, 1, 4, {"loss": 0.123456}), "synthesizing, loss 0.1235"),
        (Progress(Phase.QUANTIZATION, 1, 4, {}), "quantizing"),
        (SharedJob(Sharing.ONE_LOOP, 2), "cell and 2 more"),
    ],
)
def test_bar_shows_phase_loss_and_members(event: Event, text: str) -> None:
    assert text in shown(event)
    assert shown(event, terminal=False) == ""
    assert text not in shown(Probed(Phase.SETUP, 2.0), SharedJob(Sharing.ALONE, 2))


@pytest.mark.parametrize("terminal", [True, False])
def test_warnings_are_lines(terminal: bool) -> None:
    assert "cell: warning: no checkpoint" in shown(Warned("no checkpoint"), terminal=terminal)
