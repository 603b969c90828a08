"""Progress of a run on the terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars
from rich.table import Column

from dfqbench.run.cluster.peers import PeerLog
from dfqbench.run.execute.events import Event, Phase, PhaseStarted, Progress, SharedJob, Sharing, Warned
from dfqbench.run.plan.estimate import format_seconds
from dfqbench.run.store.record import Record

BAR_WIDTH = 16
WORDS = {
    Phase.SETUP: "loading",
    Phase.SYNTHESIS: "synthesizing",
    Phase.QUANTIZATION: "quantizing",
    Phase.SAVING: "saving",
    Phase.EVALUATION: "evaluating",
}


class View:
    """The bar of one cell under way, on a terminal; `say` prints a line, `log` takes the events."""

    def __init__(
        self, progress: ProgressBars | None, label: str, say: Callable[[str], None], log: PeerLog | None = None
    ) -> None:
        self._progress = progress
        self._label = label
        self._say = say
        self._log = log
        if log is not None:
            log.begin(self, label)
        self._task = TaskID(0) if progress is None else progress.add_task(label, total=None, note=WORDS[Phase.SETUP])

    def event(self, event: Event) -> None:
        """Show a phase, progress or a warning of the cell; called from any thread."""
        if isinstance(event, Warned):
            self._say(f"{self._label}: warning: {event.message}")
        if self._log is not None:
            self._log.event(self, event)
        if self._progress is None:
            return
        match event:
            case PhaseStarted(phase):
                self._progress.reset(self._task, total=None, note=WORDS[phase])
            case SharedJob(sharing, members) if sharing is not Sharing.ALONE:
                self._progress.update(self._task, description=f"{self._label} and {members} more")
            case Progress(phase, step, total, scalars):
                note = WORDS[phase] + (f", loss {scalars['loss']:.4g}" if "loss" in scalars else "")
                self._progress.update(self._task, total=total, completed=step, note=note)

    def close(self) -> None:
        """Remove the bar."""
        if self._log is not None:
            self._log.end(self)
        if self._progress is not None:
            self._progress.remove_task(self._task)


class Display:
    """One line for each of `total` finished cells, and on a terminal a bar for all and one for each under way.

    Attributes:
        log: takes the events for other processes; None: there is none.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._done = 0
        self.log: PeerLog | None = None
        self._progress: ProgressBars | None = None
        self._all: TaskID | None = None
        if console.is_terminal:
            # In a narrow terminal the label is cut, not the bar.
            label = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True))
            note = TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True))
            columns = (label, BarColumn(BAR_WIDTH), note, TimeRemainingColumn())
            self._progress = ProgressBars(*columns, console=console, transient=True, expand=True)
            if total > 1:
                self._all = self._progress.add_task("all cells", total=total, note=f"0 of {total}")
            self._progress.start()

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, label: str) -> View:
        """Show a cell under way."""
        return View(self._progress, label, self.say, self.log)

    def end(self, label: str, record: Record, left: float | None) -> None:
        """Print the line of a finished cell, with the expected seconds that are left, if known."""
        self._done += 1
        if self.log is not None:
            self.log.record(f"{record.status} {label}", left)
        if self._progress is not None and self._all is not None:
            self._progress.update(self._all, completed=self._done, note=f"{self._done} of {self._total}")
        text = f"{record.status}: {record.error.message if record.error is not None else None}"
        if record.top1 is not None and record.drop is not None:
            reason = "" if record.status == "ok" else f": {text}"
            wall = format_seconds(record.seconds.wall or 0.0)
            text = f"top-1 {record.top1:.2f} (drop {record.drop:.2f}), {wall}{reason}"
        rest = f"; about {format_seconds(left)} left" if left and self._done < self._total else ""
        self.say(f"[{self._done}/{self._total}] {label}: {text}{rest}")

    def close(self) -> None:
        """Remove the bars."""
        if self._progress is not None:
            self._progress.stop()
