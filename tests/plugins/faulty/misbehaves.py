"""Methods that go wrong while they run, or do harm to their process, its memory or other cells; each in its own way."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from dfqbench.api import Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def images(ctx: Context) -> Tensor:
    import torch

    return torch.randn((64, *ctx.card.input_size), generator=ctx.generator)


class _Base(Method):
    title = "Goes wrong"
    paper = "none"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)

    def images(self, ctx: Context) -> Tensor:
        return images(ctx)

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        from dfqbench.synth.source import FixedSource

        return FixedSource(self.images(ctx))


def method(function: Callable[..., Any]) -> type[Method]:
    """Make a method of a function that makes its images, or takes the place of `synthesize` or `quantize`."""
    arguments = inspect.signature(function).parameters
    replaced = "quantize" if "source" in arguments else "synthesize" if "teacher" in arguments else "images"
    name = function.__name__.replace("_", "-")
    return type(function.__name__, (_Base,), {"name": name, replaced: function})


@method
def raises(self: _Base, ctx: Context) -> Any:
    for step in range(1, 8):
        ctx.progress(step, 100)
    raise RuntimeError("the plugin's own mistake")


@method
def diverges(self: _Base, ctx: Context) -> Any:
    """Its loss is NaN from step 13 on."""
    import torch

    for step in range(1, 101):
        ctx.progress(step, 100, loss=torch.tensor(1.0 if step < 13 else float("nan")))
    return images(ctx)


@method
def exits(self: _Base, ctx: Context) -> Any:
    print("last words of the plugin", flush=True)  # noqa: T201 - must be in the log, not in the protocol
    os._exit(3)


@method
def asks_for_bits(self: _Base, ctx: Context) -> Any:
    """Looks at the scheme although it says that it does not."""
    assert ctx.scheme.label
    return images(ctx)


@method
def opens_data(self: _Base, ctx: Context) -> Any:
    """Calibrates on scikit-learn's digits, which the evaluation uses: its record must be invalid."""
    import torch
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().images[:64], dtype=torch.float32)[:, None] / 16


@method
def own_student(self: _Base, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Returns a module of its own instead of a prepared student."""
    import copy

    return copy.deepcopy(teacher)


@method
def hangs(self: _Base, ctx: Context) -> Any:
    """Never comes back, and ignores signals."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(0.1)


def take_long(ctx: Context) -> Tensor:
    done = 0 if ctx.restored is None else ctx.restored["done"]
    for step in range(done, 60):
        time.sleep(0.1)
        ctx.progress(step + 1, 60)
        ctx.checkpoint(lambda step=step: {"done": step + 1})
    return images(ctx)


@method
def slow(self: _Base, ctx: Context) -> Any:
    """Takes long, in good order."""
    return take_long(ctx)


@method
def takes(self: _Base, ctx: Context) -> Any:
    """Uses a library that takes signals, and gives them back once one has come."""
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def give_back(_number: int, _frame: object) -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, give_back)
    return take_long(ctx)


@method
def leaks(self: _Base, ctx: Context) -> Any:
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1) * (64 << 20)))


@method
def huge(self: _Base, ctx: Context) -> Any:
    """Asks for more memory than there is, at once."""
    import torch

    return torch.ones(1 << 50)


@method
def crashes(self: _Base, ctx: Context) -> Any:
    """Reads where nothing is."""
    import ctypes

    ctypes.string_at(0)


@method
def leaves_children(self: _Base, ctx: Context) -> Any:
    """Dies and leaves children that hold on to everything."""
    if os.fork() == 0:
        time.sleep(600)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    os._exit(5)


@method
def writes_outside(self: _Base, ctx: Context) -> Any:
    """Leaves something among the results of others."""
    (ctx.workdir / "own.txt").write_text("allowed")
    (Path(ctx.workdir).parent.parent.parent / "stray.txt").write_text("not allowed")
    return images(ctx)


@method
def nan_images(self: _Base, ctx: Context) -> Any:
    return images(ctx) * float("nan")


@method
def nan_student(self: _Base, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Its student has a weight that is not a number."""
    student = ctx.shared_quantize(teacher, source)
    next(student.parameters()).data.view(-1)[0] = float("nan")
    return student


@method
def wrong_shape(self: _Base, ctx: Context) -> Any:
    import torch

    return torch.zeros(64, 3, 5, 5)


@method
def no_batch(self: _Base, teacher: nn.Module, ctx: Context) -> Any:
    """Its source returns None instead of a batch."""
    return SimpleNamespace(sample=lambda _size: None, state_dict=dict, load_state_dict=lambda _state: None)


@hookimpl
def dfqbench_methods() -> list[Offer]:
    return [Offer(cls.name, f":{cls.__name__}") for cls in _Base.__subclasses__()]
