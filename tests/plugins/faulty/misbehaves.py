"""Methods that go wrong while they run, or do harm to their process, its memory or other cells; each in its own way."""

from __future__ import annotations

import copy
import ctypes
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


def make(name: str, **members: Any) -> type[Method]:
    return type(name, (_Base,), {"name": name.replace("_", "-"), **members})


def method(function: Callable[..., Any]) -> type[Method]:
    """Make a method of a function that makes its images, or takes the place of `quantize`."""
    replaced = "quantize" if "source" in inspect.signature(function).parameters else "images"
    return make(function.__name__, **{replaced: function})


@method
def raises(self: _Base, ctx: Context) -> Any:
    for step in range(1, 8):
        ctx.progress(step, 100)
    raise RuntimeError("the plugin's own mistake")


@method
def diverges(self: _Base, ctx: Context) -> Any:
    import torch

    for step in range(1, 101):
        ctx.progress(step, 100, loss=torch.tensor(1.0 if step < 13 else float("nan")))
    return images(ctx)


@method
def exits(self: _Base, ctx: Context) -> Any:
    print("last words of the plugin", flush=True)  # noqa: T201 - must be in the log, not in the protocol
    os._exit(3)


@method
def opens_data(self: _Base, ctx: Context) -> Any:
    """Calibrates on scikit-learn's digits, which the evaluation uses: its record must be invalid."""
    import torch
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().images[:64], dtype=torch.float32)[:, None] / 16


@method
def hangs(self: _Base, ctx: Context) -> Any:
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
def leaves_children(self: _Base, ctx: Context) -> Any:
    if os.fork() == 0:
        time.sleep(600)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    os._exit(5)


@method
def writes_outside(self: _Base, ctx: Context) -> Any:
    (ctx.workdir / "own.txt").write_text("allowed")
    (Path(ctx.workdir).parent.parent.parent / "stray.txt").write_text("not allowed")
    return images(ctx)


@method
def nan_student(self: _Base, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    student = ctx.shared_quantize(teacher, source)
    next(student.parameters()).data.view(-1)[0] = float("nan")
    return student


IMAGES: dict[str, Callable[[Context], Any]] = {
    "asks_for_bits": lambda ctx: images(ctx) * (ctx.scheme.w_bits > 0),
    "slow": take_long,
    "huge": lambda ctx: images(ctx).new_ones(1 << 50),
    "crashes": lambda _: ctypes.string_at(0),
    "nan_images": lambda ctx: images(ctx) * float("nan"),
    "wrong_shape": lambda ctx: images(ctx).new_zeros(64, 3, 5, 5),
}
for _name, _images in IMAGES.items():
    globals()[_name] = make(_name, images=lambda _self, ctx, make_images=_images: make_images(ctx))
own_student = make("own_student", quantize=lambda _self, teacher, _source, _ctx: copy.deepcopy(teacher))
_EMPTY = SimpleNamespace(sample=lambda _size: None, state_dict=dict, load_state_dict=lambda _state: None)
no_batch = make("no_batch", synthesize=lambda _self, _teacher, _ctx: _EMPTY)


@hookimpl
def dfqbench_methods() -> list[Offer]:
    return [Offer(cls.name, f":{cls.__name__}") for cls in _Base.__subclasses__()]
