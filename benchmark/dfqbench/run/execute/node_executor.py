"""The part of an executor that runs on another node: facts of the node, and a local executor with one slot.

It knows nothing of Ray. `ray_cluster` makes an actor of `NodeExecutor`, whose methods are then called from the machine
of `dfqbench run`, each in a thread of its own. Errors are returned, not raised: they keep their class on the way.
"""

from __future__ import annotations

import contextlib
import importlib.util
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from dfqbench.api.errors import DfqError
from dfqbench.hookspecs import ENTRY_POINTS
from dfqbench.plugins import source_hash
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import Event
from dfqbench.run.execute.executors import LocalExecutor
from dfqbench.run.execute.job import Job, Outcome, Slot
from dfqbench.run.plan.identity import CODE
from dfqbench.run.store.environment import describe_environment, environment_id, identity_facts, resolve_precision

SEEN_WITHIN = 10.0
"""Seconds until a new file is visible on all machines that share a folder; NFS remembers what was missing."""
GATHER = 0.1
"""Seconds for which news are gathered before they are sent."""
SILENCE = 30.0
"""Seconds without a question for news after which a job ends; a worker waits longer for an earlier one of its cell."""
UNEQUAL = "run on nodes that are equal, with the same packages, dfqbench and plugins"
"""Hint where nodes are not."""
Result = TypeVar("Result")
News = Event | tuple[int, int]
"""An event of a worker, or how many of how many images are evaluated."""


class NodeRefusedError(DfqError):
    """A node cannot take part in the run; the message says why."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a number may depend on, of one node."""

    description: Mapping[str, Any]  # of software and hardware (`describe_environment`)
    precision: str  # what the precision `auto` means there
    code: Mapping[str, str]  # hash of the text of dfqbench and of every plugin, by package or file

    def differences(self, node: NodeFacts) -> list[str]:
        """Return what differs on another node, as phrases with the other's value first; empty: nothing that counts."""
        phrases = [
            f"the code of {name}"
            for name in sorted({*self.code, *node.code})
            if self.code.get(name) != node.code.get(name)
        ]
        if self.precision != node.precision:
            phrases.append(f"precision {node.precision} instead of {self.precision}")
        if environment_id(self.description) != environment_id(node.description):
            here, there = _flat(self.description), _flat(node.description)
            phrases += [
                f"{key} {there.get(key)} instead of {here.get(key)}"
                for key in sorted({*here, *there})
                if here.get(key) != there.get(key)
            ] or ["hardware or software"]
        return phrases


def _flat(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a description that make an environment another one, packages and variables by name."""
    facts = identity_facts(description)
    return {**facts.pop("packages", {}), **facts.pop("variables", {}), **facts}


def node_facts(device: str, plugin_files: Sequence[str] = ()) -> NodeFacts:
    """Return the facts of this machine for a run on a torch device."""
    packages = {"dfqbench", *(point.module.partition(".")[0] for point in entry_points(group=ENTRY_POINTS))}
    code = {name: _code_hash(name) for name in packages}
    for file in map(Path, plugin_files):
        code[str(file)] = source_hash([file]) if file.is_file() else "missing"
    return NodeFacts(describe_environment(device), str(resolve_precision("auto", device)), code)


def _code_hash(package: str) -> str:
    """Return the hash of the text of an installed package or module."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return "missing"
    folders = map(Path, spec.submodule_search_locations or ())
    files = [file for folder in folders for file in folder.rglob("*") if file.suffix in CODE]
    return source_hash(files or [Path(spec.origin or "")])


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What a node executor is to be, and what its node must have."""

    slot: Slot  # its place among those of the run
    folder: str  # the run's
    token: str  # name of a file in it that `dfqbench run` has written
    paths: tuple[str, ...]  # of real data, which lie at the same place on every node
    device: str  # torch device
    threads: int  # CPU threads of an evaluator
    grace: float  # seconds that a worker has to keep its state and end
    confined: bool  # whether plugin code is confined to what it needs, where the kernel can
    facts: NodeFacts  # of the run
    plugin_files: tuple[str, ...]

    def problem(self) -> str:
        """Return why this node cannot take part in the run, or an empty text."""
        if differences := self.facts.differences(node_facts(self.device, self.plugin_files)):
            return f"it differs from the run's environment: {', '.join(differences)}"
        end = time.monotonic() + SEEN_WITHIN
        while not (Path(self.folder) / self.token).is_file():
            if time.monotonic() > end:
                return f"it does not see {self.folder}, or another folder lies there"
            time.sleep(0.5)
        missing = [path for path in self.paths if not Path(path).exists()]
        return f"it lacks {missing[0]}" if missing else ""


class NodeExecutor:
    """Runs one job at a time, and evaluates, in processes of this machine.

    Args:
        settings: the run's; where the node does not meet them, every call of `run` and `ask` returns an error.
    """

    def __init__(self, settings: NodeSettings) -> None:
        self._slot = settings.slot
        folder = Path(settings.folder)
        self._executor = LocalExecutor(
            [settings.slot], folder, settings.threads, settings.device, settings.grace, confined=settings.confined
        )
        self._news: dict[int, SimpleQueue[News | None]] = {}
        self._cancellation = Cancellation()
        self._working = threading.Lock()
        self._asked = 0.0
        try:
            self._problem = settings.problem()
            if not self._problem:
                # A device that is missing, or a folder that cannot be written to, shows before anything is begun.
                self._executor.evaluator(self._slot).start()
        except (DfqError, OSError) as error:
            self._problem = str(error)

    def problem(self) -> str:
        """Return why the node cannot take part in the run, or an empty text."""
        return self._problem

    def run(self, call: int, job: Job) -> Outcome | Exception:
        """Carry a job to its end; its events are the news of this call."""

        def work(queue: SimpleQueue[News | None]) -> Outcome:
            self._cancellation = cancellation = Cancellation()
            ended, silent = threading.Event(), threading.Event()
            watch = threading.Thread(target=self._end_in_silence, args=(cancellation, ended, silent), daemon=True)
            watch.start()
            # Clocks of two machines have nothing in common.
            placed = replace(job, started=time.monotonic())
            try:
                outcome = self._executor.run(placed, self._slot, queue.put, cancellation)
            finally:
                ended.set()
            if silent.is_set():
                raise NodeRefusedError("its job was ended because its news were not asked for")
            return outcome

        return self._reported(call, work)

    def ask(self, call: int, request: Mapping[str, Any], limit: float) -> dict[str, Any] | Exception:
        """Return the evaluator's answer to a request; how far it is, is the news of this call."""

        def work(queue: SimpleQueue[News | None]) -> dict[str, Any]:
            evaluator = self._executor.evaluator(self._slot)
            return evaluator.ask(request, limit, lambda *progress: queue.put(progress))

        return self._reported(call, work)

    def _reported(self, call: int, work: Callable[[SimpleQueue[News | None]], Result]) -> Result | Exception:
        """Return the result of some work, or its error, after the end of its news."""
        queue = self._queue(call)
        try:
            if self._problem:
                return NodeRefusedError(self._problem)
            if not self._working.acquire(blocking=False):
                # The answer to that call is not awaited any more: the network had failed for a moment.
                self.stop(hurry=True)
                self.kill_evaluator()
                self._working.acquire()
            try:
                return work(queue)
            finally:
                self._working.release()
        except (DfqError, OSError) as error:
            return error
        finally:
            queue.put(None)

    def _end_in_silence(self, cancellation: Cancellation, ended: threading.Event, silent: threading.Event) -> None:
        """End a job whose news have not been asked for in a long time, since it may be run elsewhere by now."""
        self._asked = time.monotonic()
        while not ended.wait(1.0):
            if time.monotonic() - self._asked > SILENCE:
                silent.set()
                cancellation.hurry = True
                cancellation.request("signal")

    def _queue(self, call: int) -> SimpleQueue[News | None]:
        return self._news.setdefault(call, SimpleQueue())

    def news(self, call: int, seconds: float) -> list[News | None]:
        """Return the news of a call since the last time, and None after the last; wait for some, at most so long."""
        self._asked = time.monotonic()
        queue, news = self._queue(call), list[News | None]()
        with contextlib.suppress(Empty):
            news.append(queue.get(timeout=seconds))
            end = time.monotonic() + GATHER
            while news[-1] is not None:
                news.append(queue.get(timeout=max(0.0, end - time.monotonic())))
            del self._news[call]
        return news

    def stop(self, hurry: bool) -> None:
        """Request the end of the job; its worker keeps its state first, unless in a hurry."""
        self._cancellation.hurry = hurry
        self._cancellation.request("signal")

    def kill_evaluator(self) -> None:
        """End the evaluator in the middle of a request."""
        self._executor.evaluator(self._slot).kill()

    def close(self) -> None:
        """End the evaluator."""
        self._executor.close()
