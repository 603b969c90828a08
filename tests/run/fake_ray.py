"""A stand-in for Ray: actors and tasks in threads of this process, whose arguments and results are pickled."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class RayActorError(RayError):
    pass


class GetTimeoutError(RayError):
    pass


class Actor:
    """An actor's handle; `lose` loses its node, and `restart` starts it on another one."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.restart()

    def restart(self) -> None:
        self.instance: Any = pickle.loads(pickle.dumps(self.make))()
        self.calls: list[Future[Any]] = []
        self.lost = False

    def lose(self) -> None:
        self.lost = True
        for call in self.calls:
            if not call.done():
                call.set_exception(RayActorError("the node is lost"))

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self._begin(name, arguments))

    def _begin(self, name: str, arguments: Sequence[Any]) -> Future[Any]:
        call: Future[Any] = Future()
        self.calls.append(call)
        if self.lost:
            call.set_exception(RayActorError("the node is lost"))
            return call
        given, instance = pickle.loads(pickle.dumps(arguments)), self.instance

        def work() -> None:
            try:
                result = pickle.loads(pickle.dumps(getattr(instance, name)(*given)))
            except Exception as error:
                if not call.done():
                    call.set_exception(RayTaskError(str(error)))
            else:
                if not call.done():
                    call.set_result(result)

        Thread(target=work, daemon=True).start()
        return call


class FakeRay(ModuleType):
    """The module `ray`.

    Attributes:
        answers: makes what a task on a node returns of what it would return here.
        actors: every actor that was made.
        usage_stats: what the environment said about them when the cluster was joined.
    """

    def __init__(self, resources: Sequence[dict[str, float]] = ({"CPU": 1.0}, {"CPU": 1.0})) -> None:
        super().__init__("ray")
        names = ("RayError", "RayTaskError", "RayActorError", "GetTimeoutError")
        self.exceptions = SimpleNamespace(**{name: globals()[name] for name in names})
        self.resources = resources
        self.answers: Callable[[str, Any], Any] = lambda _, answer: answer
        self.actors: list[Actor] = []
        self.room = True
        self.reachable = True
        self.usage_stats: str | None = None

    def init(self, **_: Any) -> None:
        self.usage_stats = os.environ.get("RAY_USAGE_STATS_ENABLED")
        if not self.reachable:
            raise ConnectionError("Could not find any running Ray instance.")

    def shutdown(self) -> None:
        pass

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": f"n{number}", "Alive": True, "Resources": resources}
            | {"NodeManagerHostname": f"host{number}", "NodeManagerAddress": f"10.0.0.{number}"}
            for number, resources in enumerate(self.resources)
        ]

    def remote(self, **_: Any) -> Callable[[Any], Any]:
        def wrap(target: Any) -> Any:
            return SimpleNamespace(options=lambda **how: SimpleNamespace(remote=self._starter(target, how)))

        return wrap

    def _starter(self, target: Any, how: dict[str, Any]) -> Callable[..., Any]:
        def start(*arguments: Any) -> Any:
            if isinstance(target, type):
                self.actors.append(Actor(partial(target, *arguments)))
                return self.actors[-1]
            call: Future[Any] = Future()
            try:
                call.set_result(
                    pickle.loads(pickle.dumps(self.answers(how["scheduling_strategy"], target(*arguments))))
                )
            except Exception as error:
                call.set_exception(RayTaskError(f"remote traceback\n  {type(error).__name__}: {error}"))
            return call

        return start

    def get(self, call: Any, timeout: float | None = None) -> Any:
        return [one.result(timeout) for one in call] if isinstance(call, list) else call.result(timeout)

    def wait(self, calls: list[Any], num_returns: int = 1, timeout: float | None = None) -> tuple[list[Any], list[Any]]:
        done = wait(calls, timeout, "FIRST_COMPLETED").done
        ready = [call for call in calls if call in done][:num_returns]
        return ready, [call for call in calls if call not in ready]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeRay:
        """Let `import ray` find this."""
        groups: Any = ModuleType("ray.util.placement_group")
        groups.placement_group = lambda *_, **__: SimpleNamespace(wait=lambda _: self.room)
        strategies: Any = ModuleType("ray.util.scheduling_strategies")
        strategies.NodeAffinitySchedulingStrategy = lambda node_id, **_: node_id
        strategies.PlacementGroupSchedulingStrategy = lambda *_, **__: None
        for module in (self, ModuleType("ray.util"), groups, strategies):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        return self
