"""Keeping an attempt's state at step boundaries, and ending it in good order when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dfqbench.api.errors import PluginError
from dfqbench.run.context import HostContext, Restored, State
from dfqbench.run.flag import StopFlag, Stopped
from dfqbench.run.rng import capture, restore

if TYPE_CHECKING:
    from dfqbench.run.checkpoint import Checkpoints
    from dfqbench.run.clock import Clock
    from dfqbench.run.guard import DataGuard


@dataclass(slots=True)
class Account:
    """Reads and sets what an attempt has cost until now; the attempt's two ends of one thing."""

    read: Callable[[], dict[str, Any]]
    write: Callable[[Mapping[str, Any]], None]


class StateKeeper:
    """Implements `Keeper`: writes checkpoints of one attempt and knows the one that it goes on from.

    Attributes:
        phase: the phase under way.

    Args:
        checkpoints: where states go; None: none are kept.
        flag: whether to stop.
        account: what the attempt has cost.
        clock: time spent here belongs to no phase.
        guard: what is written here is the host's.
        warn: is told of checkpoints that could not be written or read.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        flag: StopFlag,
        account: Account,
        *,
        clock: Clock,
        guard: DataGuard,
        warn: Callable[[str], None],
    ) -> None:
        self.phase = "setup"
        self._checkpoints = checkpoints
        self._flag = flag
        self._account = account
        self._clock = clock
        self._guard = guard
        self._warn = warn
        self._saved: dict[str, Any] | None = None
        self._earlier: dict[str, Any] | None = None
        self._synthesis_kept = False

    @property
    def stopping(self) -> bool:
        """Whether somebody asked the attempt to stop."""
        return self._flag.asked

    def follow(self, other: StateKeeper, flag: StopFlag, now: Callable[[], float]) -> None:
        """Keeps states and stops at the same steps as another attempt that runs in step with this one.

        Args:
            other: the attempt that made the source.
            flag: whether to stop, the same for all during one step.
            now: seconds that stand still during one step.
        """
        self._flag = flag
        if self._checkpoints is not None and other._checkpoints is not None:
            self._checkpoints.follow(other._checkpoints, now)
        self._earlier = other._earlier

    def load(self, device: Any) -> None:
        """Looks for a state to go on from."""
        if self._checkpoints is not None:
            self._saved = self._checkpoints.read(device, self._warn)

    def enter(self, phase: str) -> None:
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
        elif self.phase == "synthesis" and self._saved["synthesis"] is not None:
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
        if self._saved is not None and self._saved["phase"] != "synthesis":
            self._earlier = self._saved["synthesis"]
        elif self._checkpoints is not None and (self._synthesis_kept or self._saved is not None):
            found = self._checkpoints.read(device, self._warn)
            if found is not None and found["phase"] == "synthesis":
                self._earlier = {key: found[key] for key in ("plugin", "context", "rng")}

    def boundary(self, context: HostContext, state: State) -> None:
        """Writes a checkpoint where one is due, and ends the attempt where it shall stop."""
        stopping = self.stopping
        if self._checkpoints is None or not (stopping or self._checkpoints.due):
            if stopping:
                raise Stopped(kept=False)
            return
        with self._clock.paused():
            kept = self._write(self._checkpoints, context, state)
        if stopping:
            raise Stopped(kept)

    def stop(self) -> None:
        """Ends the attempt where the phase offers no state."""
        raise Stopped(kept=False)

    def _write(self, checkpoints: Checkpoints, context: HostContext, state: State) -> bool:
        context.check()
        rng = capture()
        content = {
            "phase": self.phase,
            "plugin": state(),
            "context": context.own_state(),
            "rng": rng,
            "account": self._account.read(),
            "synthesis": self._earlier,
        }
        try:
            with self._guard.off():
                checkpoints.write(content)
        except (OSError, PluginError) as error:
            # The result can still be had; only an interruption would cost more.
            self._warn(f"no checkpoint could be written: {error}")
            return False
        finally:
            # Whatever the plugin's `state` has drawn does not count.
            restore(rng)
        self._synthesis_kept = self._synthesis_kept or self.phase == "synthesis"
        return True
