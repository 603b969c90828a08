"""The executor `ray`: jobs and evaluations on the node executors of a Ray cluster.

Calls go to a node executor that is free, a slot's own first. When its node is lost, the same call is sent again; a job
then goes on from its cell's checkpoint. Ray starts the lost actor again where it finds a place, which may be never.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from dfqbench.api.errors import DfqError
from dfqbench.run.execute.cancellation import Cancellation
from dfqbench.run.execute.events import Event, SharedJob, Sharing, Warned
from dfqbench.run.execute.job import EvaluatorDiedError, Job, OnEvent, OnProgress, Outcome, Slot
from dfqbench.run.execute.node_executor import UNEQUAL, News, NodeRefusedError

RESENT = 3
"""How often a call is sent again after its node was lost."""
LOST = "a node was lost; its job goes on from the last checkpoint on another one"
POLL = 0.5
NEWS = 2.0
"""Seconds that a node executor waits for news before it answers that there are none."""
CLOSING = 10.0
"""Seconds for the evaluators to end."""


class NodeLostError(DfqError):
    """Nodes were lost too often, or none is left."""


@dataclass(slots=True)
class _Node:
    """A node executor as seen from here."""

    number: int  # of its slot
    actor: Any
    lost: bool = False  # whether its node was lost, and it has not answered since
    answer: Any = None  # reference of the answer that a lost one owes


class _Free:
    """The node executors that carry out no call."""

    def __init__(self, ray: Any, nodes: Sequence[_Node]) -> None:
        self._ray = ray
        self._nodes = list(nodes)
        self._left = len(nodes)
        self._lock = threading.Lock()

    def take(self, number: int, stopped: Callable[[], bool]) -> _Node | None:
        """Take the node executor of a slot, or another one where that is lost or in use.

        Returns:
            It, once one is there; None: the run was stopped before that.

        Raises:
            NodeLostError: none is left that can take part in the run.
        """
        while not stopped():
            with self._lock:
                self._find_again()
                usable = [node for node in self._nodes if not node.lost]
                if usable:
                    node = min(usable, key=lambda node: (node.number != number, node.number))
                    self._nodes.remove(node)
                    return node
                if not self._left:
                    raise NodeLostError("no node of the Ray cluster can go on with this run", UNEQUAL)
            time.sleep(POLL)
        return None

    def give_back(self, node: _Node) -> None:
        """Put a node executor among the free ones."""
        with self._lock:
            self._nodes.append(node)

    def _find_again(self) -> None:
        """Look which lost node executors Ray has started again; leave out those whose node cannot take part."""
        for node in [node for node in self._nodes if node.lost]:
            node.answer = node.answer or node.actor.problem.remote()
            if not self._ray.wait([node.answer], timeout=0)[0]:
                continue
            answer, node.answer = node.answer, None
            try:
                problem = self._ray.get(answer)
            except self._ray.exceptions.RayError:
                continue
            node.lost = False
            if problem:
                self._nodes.remove(node)
                self._left -= 1


class RayExecutor:
    """Sends jobs and requests to node executors.

    Args:
        ray: the module, connected.
        actors: the node executors; there are as many slots.
        token: the file that shows that the nodes share the folder; removed at the end.
    """

    in_process = False

    def __init__(self, ray: Any, actors: Sequence[Any], token: Path) -> None:
        self.slots: Sequence[Slot] = [Slot(number) for number in range(len(actors))]
        self._ray = ray
        self._token = token
        self._nodes = [_Node(number, actor) for number, actor in enumerate(actors)]
        self._free = _Free(ray, self._nodes)
        self._calls = itertools.count()
        self._evaluators = [_RayEvaluator(self, slot) for slot in self.slots]

    def run(self, job: Job, slot: Slot, on_event: OnEvent, cancellation: Cancellation) -> Outcome:
        """Send a job to a node executor, and again where its node is lost."""
        begin = sent = time.monotonic()
        shared = True

        def handle(news: News) -> None:
            nonlocal shared
            event = cast(Event, news)
            shared = shared and not (isinstance(event, SharedJob) and event.sharing is Sharing.ALONE)
            on_event(event)

        def arguments() -> list[Any]:
            nonlocal sent
            sent = time.monotonic()
            # Members that the lost worker has declined wait for a job of their own.
            return [job if shared else replace(job, members=[])]

        try:
            outcome = self.call(
                *(slot, "run", arguments, handle),
                stopped=lambda: cancellation.reason is not None,
                stop=lambda actor: actor.stop.remote(cancellation.hurry),
            )
        except NodeLostError as error:
            return Outcome("failed", error=_error("NodeLost", str(error)), died=True)
        if outcome is None:
            message = "the run was stopped while the job had no node; it goes on from its last checkpoint, if any"
            return Outcome("preempted", error=_error("Preempted", message), died=True)
        if isinstance(outcome, Exception):
            raise outcome
        # The lost part is no time of the cell; what its checkpoint holds of it is counted as that of earlier attempts.
        before = float(outcome.result.get("wall_before", 0.0)) - (sent - begin)
        return replace(cast(Outcome, outcome), result={**outcome.result, "wall_before": before})

    def evaluator(self, slot: Slot) -> _RayEvaluator:
        """Return the slot's evaluator, on the node of the call."""
        return self._evaluators[slot.number]

    def call(
        self,
        slot: Slot,
        method: str,
        arguments: Callable[[], Sequence[Any]],
        handle: Callable[[News], None],
        *,
        stopped: Callable[[], bool],
        stop: Callable[[Any], object],
    ) -> Any:
        """Have a node executor carry out a call, and another one where its node is lost.

        Args:
            slot: whose node executor is preferred.
            method: its method.
            arguments: returns the method's arguments; called before each sending.
            handle: takes the news, and a warning when a node is lost.
            stopped: whether the call shall end early.
            stop: ends the call of an actor; called again and again until it has ended.

        Returns:
            The result, perhaps an error; None: it was stopped before a node was free.

        Raises:
            NodeLostError: nodes were lost too often, or none is left.
        """
        for _ in range(1 + RESENT):
            node = self._free.take(slot.number, stopped)
            if node is None:
                return None
            try:
                result = self._follow(node.actor, method, arguments(), handle, stopped=stopped, stop=stop)
                if not isinstance(result, NodeRefusedError):
                    return result
                node.lost = True
            except self._ray.exceptions.RayTaskError:
                raise  # a defect in the node executor
            except self._ray.exceptions.RayError:
                node.lost = True
            finally:
                self._free.give_back(node)
            handle(Warned(LOST))
        raise NodeLostError(f"its node was lost {1 + RESENT} times", "see Ray's logs; --retry failed runs it again")

    def _follow(
        self,
        actor: Any,
        method: str,
        arguments: Sequence[Any],
        handle: Callable[[News], None],
        *,
        stopped: Callable[[], bool],
        stop: Callable[[Any], object],
    ) -> Any:
        ray = self._ray
        number = next(self._calls)
        work, news = getattr(actor, method).remote(number, *arguments), actor.news.remote(number, NEWS)
        while True:
            ready, _ = ray.wait([news], timeout=POLL)
            if stopped():
                stop(actor)
            if not ready:
                if ray.wait([work], timeout=0)[0]:
                    ray.get(work)  # raises what has kept the call from beginning
                continue
            for entry in ray.get(news):
                if entry is None:
                    return ray.get(work)
                handle(entry)
            news = actor.news.remote(number, NEWS)

    def close(self) -> None:
        """End the node executors, and leave the cluster."""
        closing = [node.actor.close.remote() for node in self._nodes if not node.lost]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=CLOSING)
        self._token.unlink(missing_ok=True)
        self._ray.shutdown()


class _RayEvaluator:
    """The evaluator of a slot: that of its node executor, or of the one that stands in for it."""

    def __init__(self, executor: RayExecutor, slot: Slot) -> None:
        self._executor = executor
        self._slot = slot
        self._killed = threading.Event()

    def ask(
        self, request: Mapping[str, Any], limit: float = 0.0, on_progress: OnProgress | None = None
    ) -> dict[str, Any]:
        """Send a request and wait for the answer (`EvaluatorClient.ask`)."""

        def handle(news: News) -> None:
            if on_progress is not None and isinstance(news, tuple):
                on_progress(*news)

        self._killed.clear()
        answer = self._executor.call(
            *(self._slot, "ask", lambda: (dict(request), limit), handle),
            stopped=self._killed.is_set,
            stop=lambda actor: actor.kill_evaluator.remote(),
        )
        if answer is None:
            raise EvaluatorDiedError("the run was stopped while no node was free for an evaluation")
        if isinstance(answer, Exception):
            raise answer
        return cast(dict[str, Any], answer)

    def kill(self) -> None:
        """End the evaluator in the middle of a request; called from another thread."""
        self._killed.set()


def _error(name: str, message: str) -> dict[str, Any]:
    return {"type": name, "message": message, "phase": None, "step": None, "plugin": None, "traceback": ""}
