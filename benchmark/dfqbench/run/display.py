"""What a person sees while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dfqbench.run.estimate import spoken

WORDS = {"setup": "loading", "synthesis": "synthesizing", "quantization": "quantizing", "evaluation": "evaluating"}


class Display:
    """One line a finished cell, and on a terminal a bar for the one under way.

    Args:
        console: where to print (standard error, so that a table on standard output stays clean).
        total: cells to run.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._done = 0
        self._begin = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
            self._progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
            self._progress.start()
            self._task = self._progress.add_task("", total=None, note="")

    def say(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, label: str) -> None:
        """A cell starts."""
        if self._progress is not None and self._task is not None:
            self._progress.reset(
                self._task, total=None, description=f"[{self._done + 1}/{self._total}] {label}", note=""
            )

    def event(self, event: Mapping[str, Any]) -> None:
        """A phase or progress of the cell under way."""
        if self._progress is None or self._task is None:
            return
        if event.get("event") == "phase":
            word = WORDS.get(str(event.get("name")), str(event.get("name")))
            self._progress.reset(self._task, total=None, note=word)
        elif event.get("event") == "progress":
            loss = event.get("scalars", {}).get("loss")
            word = WORDS.get(str(event.get("phase")), "")
            note = word if loss is None else f"{word}, loss {loss:.4g}"
            self._progress.update(self._task, total=event["total"], completed=event["step"], note=note)

    def end(self, label: str, record: Mapping[str, Any], left: float | None) -> None:
        """A cell has ended.

        Args:
            label: of the cell.
            record: its record.
            left: expected seconds of the rest, or None.
        """
        self._done += 1
        status = record["status"]
        if status in {"ok", "invalid"}:
            seconds = record["seconds"]
            text = f"top-1 {record['top1']:.2f} (drop {record['drop']:.2f}), {spoken(seconds['wall'])}"
            if status == "invalid":
                text += f": invalid: {(record.get('error') or {}).get('message')}"
        else:
            text = f"{status}: {(record.get('error') or {}).get('message')}"
        rest = f"; about {spoken(left)} left" if left and self._done < self._total else ""
        self.say(f"[{self._done}/{self._total}] {label}: {text}{rest}")

    def close(self) -> None:
        """Takes the bar away."""
        if self._progress is not None:
            self._progress.stop()
