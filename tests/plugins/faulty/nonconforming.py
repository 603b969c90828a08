"""Methods that break the contract while they run, each in one way, named after it."""

from __future__ import annotations

import copy
import os
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.api import Batch, Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl, param

if TYPE_CHECKING:
    from torch import Tensor, nn


def noise(ctx: Context, *shape: int) -> Tensor:
    import torch

    return torch.randn(shape or (8, *ctx.card.input_size), generator=ctx.generator)


def fixed(*images_and_labels: Tensor) -> SampleSource:
    from dfqbench.synth import FixedSource

    return FixedSource(*images_and_labels)


class Sound(Method):
    name = "sound"
    title = "Breaks the contract"
    paper = "an example of dfqbench's tests"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        self.deed(teacher, ctx)
        return fixed(noise(ctx))

    def deed(self, teacher: nn.Module, ctx: Context) -> Any: ...


def make(name: str, **members: Any) -> type[Method]:
    return type(name, (Sound,), {"name": name.replace("_", "-"), **members})


@dataclass(frozen=True)
class LossyParams:
    sizes: Any = param((1, 2), help="comes back from JSON as a list", source="none")


@dataclass(frozen=True)
class SilentParams:
    steps: int = 3


lossy_params = make("lossy_params", params_type=LossyParams)
silent_params = make("silent_params", params_type=SilentParams)
needs_nothing = make("needs_nothing", requires=Requires(batchnorm=True))
needs_no_bits = make("needs_no_bits", depends_on_bits=True)


def _forgetful(self: Method, teacher: nn.Module, ctx: Context) -> Any:
    """Its checkpoint lacks the momentum."""
    state = ctx.restored or {"step": 0, "images": noise(ctx)}
    images = state["images"]
    momentum = images.new_zeros(())
    for step in range(state["step"], 4):
        momentum = momentum + noise(ctx)
        images = images + momentum
        ctx.progress(step + 1, 4)
        ctx.checkpoint(lambda step=step, images=images: {"step": step + 1, "images": images})
    return fixed(images)


forgetful = make("forgetful", synthesize=_forgetful)


class _Source:
    """A source whose state lacks the cursor."""

    def __init__(self, images: Tensor, more_state: dict[str, Any]) -> None:
        self.images = images
        self.more_state = more_state
        self.cursor = 0

    def sample(self, size: int) -> Batch:
        self.cursor += 1
        return Batch(self.images[:1].expand(size, -1, -1, -1) * self.cursor)

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, **self.more_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.images = state["images"]


class _SecretiveSource:
    """Looks at the student and says that it does not."""

    needs_student = False
    batch_size = 16
    training_steps = 10

    def __init__(self, ctx: Context) -> None:
        self.mean, self.ctx = 0.0, ctx

    def sample(self, size: int) -> Batch:
        return Batch(self.mean + noise(self.ctx, size, *self.ctx.card.input_size))

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
        batch = self.sample(size)
        if student is not None:
            self.mean += 0.01 * float(student(batch.images).detach().mean())
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "random": self.ctx.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]
        self.ctx.generator.set_state(state["random"])


def _writes(teacher: nn.Module, ctx: Context) -> None:
    (Path(ctx.workdir) / "allowed.txt").write_text("allowed")
    with tempfile.NamedTemporaryFile(prefix="nonconforming-"):
        pass


def _connects(teacher: nn.Module, ctx: Context) -> None:
    with socket.socket() as client:
        client.connect_ex(("127.0.0.1", 9))


def _changes_settings(teacher: nn.Module, ctx: Context) -> None:
    import torch

    torch.set_grad_enabled(False)


def _hides_batchnorm(teacher: nn.Module, ctx: Context) -> None:
    from dfqbench.synth import BatchNormStatistics

    with BatchNormStatistics(teacher):
        pass


DEEDS: dict[str, Callable[[nn.Module, Context], Any]] = {
    "endless": lambda *_: time.sleep(1e6),
    "leaves": lambda *_: os._exit(7),
    "writes": _writes,
    "reads": lambda *_: Path(os.environ["DFQBENCH_DATA"].split(os.pathsep)[0], "images.npz").read_bytes(),
    "connects": _connects,
    "mutates_teacher": lambda teacher, _: next(teacher.parameters()).mul_(1.01),
    "trains_teacher": lambda teacher, _: list(teacher.modules())[1].train(),
    "unseeded": lambda _, ctx: ctx.generator.seed(),
    "constant_seed": lambda _, ctx: ctx.generator.manual_seed(0),
    "changes_settings": _changes_settings,
    "no_checkpoint": lambda _, ctx: [ctx.progress(step, 3) for step in range(1, 4)],
    "hides_batchnorm": _hides_batchnorm,
    "asks_in_secret": lambda _, ctx: ctx.scheme.w_bits,
}
SOURCES: dict[str, Callable[[Context], Any]] = {
    "wrong_shape": lambda ctx: fixed(noise(ctx, 8, 3, 8, 8)),
    "wrong_dtype": lambda ctx: fixed(noise(ctx).double()),
    "not_finite": lambda ctx: fixed(noise(ctx) / 0),
    "wrong_labels": lambda ctx: fixed(noise(ctx), noise(ctx, 8).fill_(1000).long()),
    "black": lambda ctx: fixed(noise(ctx) * 1e-3),
    "no_source": noise,
    "graph": lambda ctx: _Source(noise(ctx).requires_grad_(), {}),
    "unloadable_state": lambda ctx: _Source(noise(ctx), {"path": Path("here")}),
    "partial_state": lambda ctx: _Source(noise(ctx), {}),
    "looks_in_secret": _SecretiveSource,
}
"""Sources of methods that break the contract by their source alone."""
for _name, _deed in DEEDS.items():
    globals()[_name] = make(_name, deed=staticmethod(_deed))
for _name, _source in SOURCES.items():
    globals()[_name] = make(_name, synthesize=lambda _self, _teacher, ctx, source=_source: source(ctx))


def _leaves_hook(self: Method, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    teacher.register_forward_hook(lambda *_: None)
    return ctx.shared_quantize(teacher, source)


def _fails_to_quantize(self: Method, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    raise ValueError("only eight bits")


def _no_ranges(self: Method, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    return ctx.prepare(teacher)


def _eight_bits(self: Method, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    from dfqbench.quant import parse_scheme, prepare

    return prepare(teacher, parse_scheme("w8a8@gdfq"), ctx.card)


for _quantize in (_leaves_hook, _fails_to_quantize, _no_ranges, _eight_bits):
    globals()[_quantize.__name__[1:]] = make(_quantize.__name__[1:], quantize=_quantize)
own_module = make("own_module", quantize=lambda _self, teacher, _source, _ctx: copy.deepcopy(teacher))


@hookimpl
def dfqbench_methods() -> list[Offer]:
    return [Offer(cls.name, f":{cls.__name__}") for cls in (Sound, *Sound.__subclasses__())]
