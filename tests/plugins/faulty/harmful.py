"""Methods that take their process, its memory or their neighbours with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.api import Batch, Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl

if TYPE_CHECKING:
    from torch import nn


class _Base(Method):
    title = "Does harm"
    paper = "none"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        import torch

        from dfqbench.synth.source import FixedSource

        self.harm(ctx)
        return FixedSource(torch.randn((64, *ctx.card.input_size), generator=ctx.generator))

    def harm(self, ctx: Context) -> None:
        """What goes wrong."""


class Hangs(_Base):
    """Never comes back, and hears no signal."""

    name = "hangs"

    def harm(self, ctx: Context) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        while True:
            time.sleep(0.1)


class Slow(_Base):
    """Takes long, in good order."""

    name = "slow"

    def harm(self, ctx: Context) -> None:
        done = 0 if ctx.restored is None else ctx.restored["done"]
        for step in range(done, 60):
            time.sleep(0.1)
            ctx.progress(step + 1, 60)
            ctx.checkpoint(lambda step=step: {"done": step + 1})


class Takes(Slow):
    """Uses a library that takes signals, and gives them back once one has come."""

    name = "takes"

    def harm(self, ctx: Context) -> None:
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}

        def give_back(_number: int, _frame: object) -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        for number in before:
            signal.signal(number, give_back)
        super().harm(ctx)


class Leaks(_Base):
    """Keeps everything."""

    name = "leaks"

    def harm(self, ctx: Context) -> None:
        kept = []
        while True:
            kept.append(bytearray(os.urandom(1) * (64 << 20)))


class Huge(_Base):
    """Asks for more than there is, at once."""

    name = "huge"

    def harm(self, ctx: Context) -> None:
        import torch

        torch.ones(1 << 50)


class Crashes(_Base):
    """Reads where nothing is."""

    name = "crashes"

    def harm(self, ctx: Context) -> None:
        import ctypes

        ctypes.string_at(0)


class LeavesChildren(_Base):
    """Dies and leaves a child that holds on to everything."""

    name = "leaves-children"

    def harm(self, ctx: Context) -> None:
        if os.fork() == 0:
            time.sleep(600)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        os._exit(5)


class WritesOutside(_Base):
    """Leaves something among the results of others."""

    name = "writes-outside"

    def harm(self, ctx: Context) -> None:
        (ctx.workdir / "mine.txt").write_text("allowed")
        cells = Path(ctx.workdir).parent.parent.parent
        (cells / "stray.txt").write_text("not allowed")


class NanImages(_Base):
    """Its images are not numbers."""

    name = "nan-images"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        import torch

        from dfqbench.synth.source import FixedSource

        return FixedSource(torch.full((64, *ctx.card.input_size), float("nan")))


class NanStudent(_Base):
    """Its student has a weight that is not a number."""

    name = "nan-student"

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
        import torch

        student = ctx.shared_quantize(teacher, source)
        with torch.no_grad():
            next(student.parameters()).view(-1)[0] = float("nan")
        return student


class WrongShape(_Base):
    """Its images are of another size."""

    name = "wrong-shape"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        import torch

        from dfqbench.synth.source import FixedSource

        return FixedSource(torch.zeros(64, 3, 5, 5))


class NoBatch(_Base):
    """Its source gives no batches."""

    name = "no-batch"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        class Source:
            def sample(self, size: int) -> Batch:
                return None  # type: ignore[return-value]

            def state_dict(self) -> dict[str, Any]:
                return {}

            def load_state_dict(self, state: dict[str, Any]) -> None:
                pass

        return Source()


@hookimpl
def dfqbench_methods() -> list[Offer]:
    kinds = (Hangs, Slow, Takes, Leaks, Huge, Crashes, LeavesChildren)
    kinds += (WritesOutside, NanImages, NanStudent, WrongShape, NoBatch)
    return [Offer(kind.name, f":{kind.__name__}") for kind in kinds]
