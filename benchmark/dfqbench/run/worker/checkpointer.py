"""Keeping an attempt's state at step boundaries, and ending it in good order when a stop is requested."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dfqbench.api.errors import PluginError
from dfqbench.run.execute.events import Phase
from dfqbench.run.worker.context import HostContext, Restored, State
from dfqbench.run.worker.rng import capture, restore
from dfqbench.run.worker.stop_flag import StopFlag, Stopped

if TYPE_CHECKING:
    from dfqbench.run.worker.checkpoints import Checkpoints
    from dfqbench.run.worker.clock import Clock
    from dfqbench.run.worker.data_guard import DataGuard


@dataclass(slots=True)
class Account:
    """Reads and sets what an attempt has cost until now; the attempt's two ends of one thing."""

    read: Callable[[], dict[str, Any]]
    write: Callable[[Mapping[str, Any]], None]


class Boundary:
    """The step boundary of the students of one loop: all of them are kept in one file, or none.

    Attributes:
        students: checkpoints of the students that still train, by scheme; None: none are kept.
        contents: states of the students that have come to the present boundary.
        stopping: whether the loop ends at the present boundary.
        keeps: whether the present boundary is kept.

    Args:
        flag: whether to stop; read once a step.
    """

    def __init__(self, flag: StopFlag) -> None:
        self.students: dict[str, Checkpoints | None] = {}
        self.contents: dict[str, dict[str, Any]] = {}
        self.stopping = False
        self.keeps = False
        self._flag = flag
        self._seen: set[str] = set()

    def reach(self, student: str) -> None:
        """Notes that a student has come to a boundary; the first of a step decides for all."""
        if not self._seen or student in self._seen:
            self._seen, self.contents = set(), {}
            self.stopping = self._flag.asked
            checkpoints = self.students[student]
            self.keeps = checkpoints is not None and (self.stopping or checkpoints.due)
        self._seen.add(student)

    @property
    def complete(self) -> bool:
        """Whether all students have come to the present boundary."""
        return self._seen >= self.students.keys()

    def write(self) -> None:
        """Writes the states.

        Raises:
            PluginError: a state holds what cannot be saved.
            OSError: the file cannot be written.
        """
        first, *others = [self.students[student] for student in self.contents]
        if first is not None:
            first.write(self.contents, [other for other in others if other is not None])


class StateKeeper:
    """Implements `Keeper`: writes checkpoints of one attempt and knows the one that it goes on from.

    Attributes:
        phase: the phase under way.
        student: the student's scheme, by which it is found in a file of several.

    Args:
        checkpoints: where states go; None: none are kept.
        flag: whether to stop.
        account: what the attempt has cost.
        student: the student's scheme.
        clock: time spent here belongs to no phase.
        guard: what is written here is the host's.
        warn: takes messages about checkpoints that could not be written or read.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        flag: StopFlag,
        account: Account,
        *,
        student: str,
        clock: Clock,
        guard: DataGuard,
        warn: Callable[[str], None],
    ) -> None:
        self.phase = Phase.SETUP
        self.student = student
        self._checkpoints = checkpoints
        self._flag = flag
        self._boundary = Boundary(flag)
        self._boundary.students[student] = checkpoints
        self._account = account
        self._clock = clock
        self._guard = guard
        self._warn = warn
        self._saved: dict[str, Any] | None = None
        self._earlier: dict[str, Any] | None = None
        self._synthesis_kept = False

    @property
    def stopping(self) -> bool:
        """Whether a stop of the attempt was requested."""
        return self._flag.asked

    def join(self, leader: StateKeeper) -> bool:
        """Keeps states together with the attempt that made the source, which alone looks whether to stop.

        Returns:
            Whether both go on from the same boundary, or both begin.
        """
        self._flag = StopFlag()
        self._boundary = leader._boundary
        self._boundary.students[self.student] = self._checkpoints
        self._earlier = leader._earlier
        return self._from == leader._from

    def leave(self) -> None:
        """Is no longer waited for at the boundaries of the others."""
        self._boundary.students.pop(self.student, None)
        self._boundary.contents.pop(self.student, None)

    @property
    def _from(self) -> str | None:
        """The boundary that the quantization goes on from, or None."""
        saved = self._saved
        return saved["boundary"] if saved is not None and saved["phase"] == Phase.QUANTIZATION else None

    def load(self, device: Any) -> None:
        """Looks for a state to go on from."""
        if self._checkpoints is not None:
            self._saved = self._checkpoints.read(self.student, device, self._warn)

    def enter(self, phase: Phase) -> None:
        """Begins a phase; an attempt that shall stop ends here, between two phases."""
        self.phase = phase
        if self.stopping:
            raise Stopped(kept=False)

    def restored(self) -> Restored | None:
        """What the phase under way goes on from, or None."""
        if self._saved is None:
            return None
        if self._saved["phase"] == self.phase:
            part, account = self._saved, self._saved["account"]
        elif self.phase is Phase.SYNTHESIS and self._saved["synthesis"] is not None:
            # A source that still learned when the attempt ended: only its synthesis is repeated, from its own state.
            part, account = self._saved["synthesis"], None
        else:
            return None

        def on_read() -> None:
            restore(part["rng"])
            if account is not None:
                self._account.write(account)

        return Restored(part["plugin"], part["context"], on_read)

    def remember_synthesis(self, device: Any) -> None:
        """Keeps the synthesis' last state beside those of the quantization, for a source that is not saved itself."""
        if self._saved is not None and self._saved["phase"] != Phase.SYNTHESIS:
            self._earlier = self._saved["synthesis"]
        elif self._checkpoints is not None and (self._synthesis_kept or self._saved is not None):
            found = self._checkpoints.read(self.student, device, self._warn)
            if found is not None and found["phase"] == Phase.SYNTHESIS:
                self._earlier = {key: found[key] for key in ("plugin", "context", "rng")}

    def boundary(self, context: HostContext, state: State) -> None:
        """Keeps the state where that is due; the last student of a step writes all, and ends them if they shall stop.

        Raises:
            Stopped: a stop was requested.
        """
        boundary = self._boundary
        boundary.reach(self.student)
        kept = False
        if boundary.keeps:
            with self._clock.paused():
                boundary.contents[self.student] = self._content(context, state)
                kept = boundary.complete and self._write(boundary)
        if boundary.complete and boundary.stopping:
            raise Stopped(kept)

    def stop(self) -> None:
        """Ends the attempt where the phase offers no state."""
        raise Stopped(kept=False)

    def _content(self, context: HostContext, state: State) -> dict[str, Any]:
        context.check()
        rng = capture()
        try:
            return {
                "phase": str(self.phase),
                "plugin": state(),
                "context": context.own_state(),
                "rng": rng,
                "account": self._account.read(),
                "synthesis": self._earlier,
            }
        finally:
            # Random numbers that the plugin's `state` has drawn do not count.
            restore(rng)

    def _write(self, boundary: Boundary) -> bool:
        try:
            with self._guard.off():
                boundary.write()
        except (OSError, PluginError) as error:
            # The result can still be had; only an interruption would cost more.
            self._warn(f"no checkpoint could be written: {error}")
            return False
        self._synthesis_kept = self._synthesis_kept or self.phase is Phase.SYNTHESIS
        return True
