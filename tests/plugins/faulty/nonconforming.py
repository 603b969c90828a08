"""Methods that break the contract while they run, each in one way, named after it."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.api import Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl, param

if TYPE_CHECKING:
    from torch import Tensor, nn


class _Base(Method):
    title = "Breaks the contract"
    paper = "an example of dfqbench's tests"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)

    def noise(self, ctx: Context, *shape: int) -> Tensor:
        import torch

        return torch.randn(shape or (8, *ctx.card.input_size), generator=ctx.generator)

    def fixed(self, images: Tensor, *rest: Any) -> SampleSource:
        from dfqbench.synth import FixedSource

        return FixedSource(images, *rest)

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        return self.fixed(self.noise(ctx))


class Sound(_Base):
    """Breaks nothing."""

    name = "sound"


@dataclass(frozen=True)
class LossyParams:
    sizes: Any = param((1, 2), help="comes back from JSON as a list", source="none")


class Lossy(_Base):
    name = "lossy-params"
    params_type = LossyParams


@dataclass(frozen=True)
class SilentParams:
    steps: int = 3


class Silent(_Base):
    name = "silent-params"
    params_type = SilentParams


class Endless(_Base):
    name = "endless"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        while True:
            time.sleep(0.01)


class Leaves(_Base):
    name = "leaves"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        os._exit(7)


class Writes(_Base):
    name = "writes"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        (Path(ctx.workdir) / "allowed.txt").write_text("mine")
        with tempfile.NamedTemporaryFile(prefix="nonconforming-"):
            return super().synthesize(teacher, ctx)


class Reads(_Base):
    name = "reads"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        folder = os.environ["DFQBENCH_DATA"].split(os.pathsep)[0]
        (Path(folder) / "images.npz").read_bytes()
        return super().synthesize(teacher, ctx)


class Connects(_Base):
    name = "connects"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        with socket.socket() as plug:
            plug.connect_ex(("127.0.0.1", 9))
        return super().synthesize(teacher, ctx)


class WrongShape(_Base):
    name = "wrong-shape"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        return self.fixed(self.noise(ctx, 8, 3, 8, 8))


class WrongDtype(_Base):
    name = "wrong-dtype"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        return self.fixed(self.noise(ctx).double())


class NotFinite(_Base):
    name = "not-finite"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        return self.fixed(self.noise(ctx) / 0)


class WrongLabels(_Base):
    name = "wrong-labels"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        images = self.noise(ctx)
        return self.fixed(images, images.new_full((8,), 1000).long())


class NoSource(_Base):
    name = "no-source"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> Any:
        return self.noise(ctx)


class Graph(_Base):
    name = "graph"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        source = self.fixed(self.noise(ctx))
        source.images.requires_grad_()
        return source


class MutatesTeacher(_Base):
    name = "mutates-teacher"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        next(teacher.parameters()).mul_(1.01)
        return super().synthesize(teacher, ctx)


class Trains(_Base):
    name = "trains-teacher"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        list(teacher.modules())[1].train()
        return super().synthesize(teacher, ctx)


class Hooks(_Base):
    name = "leaves-hook"

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
        teacher.register_forward_hook(lambda *_: None)
        return super().quantize(teacher, source, ctx)


class Unseeded(_Base):
    name = "unseeded"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        import torch

        own = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "big"))
        return self.fixed(torch.randn((8, *ctx.card.input_size), generator=own))


class ConstantSeed(_Base):
    name = "constant-seed"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        import torch

        return self.fixed(torch.randn((8, *ctx.card.input_size), generator=torch.Generator().manual_seed(0)))


class Settings(_Base):
    name = "changes-settings"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        import torch

        torch.set_grad_enabled(False)
        return super().synthesize(teacher, ctx)


class Forgetful(_Base):
    """Its checkpoint lacks the momentum."""

    name = "forgetful"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        state = ctx.restored or {"step": 0, "images": self.noise(ctx)}
        images = state["images"]
        momentum = images.new_zeros(())
        for step in range(state["step"], 4):
            momentum = momentum + self.noise(ctx)
            images = images + momentum
            ctx.progress(step + 1, 4)
            ctx.checkpoint(lambda step=step, images=images: {"step": step + 1, "images": images})
        return self.fixed(images)


class NoCheckpoint(_Base):
    name = "no-checkpoint"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        for step in range(1, 4):
            ctx.progress(step, 3)
        return super().synthesize(teacher, ctx)


class _Source:
    """A source of its own make."""

    def __init__(self, images: Tensor, unloadable: bool) -> None:
        self.images = images
        self.unloadable = unloadable
        self.cursor = 0

    def sample(self, size: int) -> Any:
        from dfqbench.api import Batch

        self.cursor += 1
        return Batch(self.images[:1].expand(size, -1, -1, -1) * self.cursor)

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images} | ({"path": Path("here")} if self.unloadable else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.images = state["images"]


class Unloadable(_Base):
    name = "unloadable-state"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> Any:
        return _Source(self.noise(ctx), True)


class PartialState(_Base):
    name = "partial-state"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> Any:
        return _Source(self.noise(ctx), False)


class FailsToQuantize(_Base):
    name = "fails-to-quantize"

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
        raise ValueError("only eight bits")


class NoRanges(_Base):
    """Its student's ranges never saw an image."""

    name = "no-ranges"

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
        from dfqbench.quant import prepare

        return prepare(teacher, ctx.scheme, ctx.card)


class OwnModule(_Base):
    name = "own-module"

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
        import copy

        return copy.deepcopy(teacher)


class HidesBatchNorm(_Base):
    """Needs BatchNorm and says that it does not."""

    name = "hides-batchnorm"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        from dfqbench.synth import BatchNormStatistics

        with BatchNormStatistics(teacher):
            return super().synthesize(teacher, ctx)


class NeedsNothing(_Base):
    name = "needs-nothing"
    requires = Requires(batchnorm=True)


class NeedsNoBits(_Base):
    name = "needs-no-bits"
    depends_on_bits = True


class AsksForBits(_Base):
    name = "asks-in-secret"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        _ = ctx.scheme.w_bits
        return super().synthesize(teacher, ctx)


class LooksAtTheStudent(_Base):
    """Its source says that it never looks at a student, and does."""

    name = "looks-in-secret"
    quantizer = "distill:gdfq"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        import torch

        from dfqbench.api import Batch

        shape = ctx.card.input_size

        class Source:
            needs_student = False

            def __init__(self) -> None:
                self.mean = 0.0
                self.random = torch.Generator().manual_seed(ctx.seed("images"))

            def sample(self, size: int) -> Batch:
                return Batch(self.mean + torch.randn((size, *shape), generator=self.random))

            def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
                batch = self.sample(size)
                if student is not None:
                    with torch.no_grad():
                        self.mean += 0.01 * float(student(batch.images).mean())
                return batch

            def state_dict(self) -> dict[str, Any]:
                return {"mean": self.mean, "random": self.random.get_state()}

            def load_state_dict(self, state: dict[str, Any]) -> None:
                self.mean = state["mean"]
                self.random.set_state(state["random"])

        return Source()


class Black(_Base):
    """Images without anything on them."""

    name = "black"

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        return self.fixed(self.noise(ctx) * 1e-3)


@hookimpl
def dfqbench_methods() -> list[Offer]:
    def below(kind: type[Method]) -> list[type[Method]]:
        return [kind, *(deeper for child in kind.__subclasses__() for deeper in below(child))]

    return [Offer(kind.name, f":{kind.__name__}") for kind in below(_Base) if hasattr(kind, "name")]
