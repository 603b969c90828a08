"""A live source that may feed several students at once, and a quantizer that goes wrong at one bit-width."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dfqbench.api import Batch, Context, Fidelity, Method, Offer, Quantizer, Requires, SampleSource, hookimpl, param

if TYPE_CHECKING:
    from torch import nn

    from dfqbench.quant import Student

STEPS = 6
Ways = Literal["raises", "exits", "dies", "nan", "asks-otherwise", "draws-otherwise", "memory"]


@dataclass
class _Chance:
    shape: tuple[int, ...]
    fails_at: int
    steps: int = 0
    batch_size: ClassVar[int] = 8
    training_steps: ClassVar[int] = 20

    def sample(self, size: int) -> Batch:
        import torch

        return Batch(torch.randn(size, *self.shape) + self.steps)

    def train_step(self, size: int, student: nn.Module | None = None) -> Batch:
        self.steps += 1
        if self.steps == self.fails_at:
            raise ValueError("the source's own mistake")
        return self.sample(size)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


class _Open(_Chance):
    needs_student = False


@dataclass(frozen=True)
class FeedsParams:
    fails_at: int = param(0, help="step at which the source goes wrong", source="a test")


class Feeds(Method):
    name = "feeds"
    title = "For tests of shared loops"
    paper = "none"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)
    quantizer = "fragile"
    params_type = FeedsParams
    params: FeedsParams
    source_type: type[_Chance] = _Open

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        return self.source_type(ctx.card.input_size, self.params.fails_at)


class FeedsSilently(Feeds):
    name = "feeds-silently"
    source_type = _Chance


class MakesItsOwn(Feeds):
    """Overrides `quantize`, which may then depend on what `synthesize` has left on the method."""

    name = "makes-its-own"

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Student:
        return ctx.shared_quantize(teacher, source)


@dataclass(frozen=True)
class FragileParams:
    bits: int = param(0, help="bits of the weights at which it goes wrong", source="a test")
    how: Ways = param("raises", help="how", source="a test")


class Fragile(Quantizer):
    name = "fragile"
    title = "Means of the batches as ranges"
    params_type = FragileParams
    params: FragileParams

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Student:
        (student,) = self.quantize_many(teacher, source, [ctx])
        assert student is not None
        return student

    def quantize_many(self, teacher: nn.Module, source: Any, contexts: Sequence[Context]) -> Sequence[Student | None]:
        students = [ctx.for_student(ctx.prepare, teacher) for ctx in contexts]
        pairs = [(ctx, student) for ctx, student in zip(contexts, students, strict=True) if student is not None]
        states = [ctx.for_student(self._restored, ctx, student) for ctx, student in pairs]
        state = next((state for state in states if state is not None), {"step": 0})
        if "source" in state:
            source.load_state_dict(state["source"])
        for step in range(state["step"], STEPS):
            batch = source.train_step(8)
            for ctx, student in pairs:
                ctx.for_student(self._step, step, batch, source, ctx, student)
        return students

    def _restored(self, ctx: Context, student: Student) -> dict[str, Any] | None:
        if ctx.restored is not None:
            student.load_state_dict(ctx.restored["student"])
        return ctx.restored

    def _step(self, step: int, batch: Batch, source: SampleSource, ctx: Context, student: Student) -> None:
        import torch

        images = batch.images * 0.5 + torch.randn(())
        loss = torch.ones(())
        if self.params.bits == ctx.scheme.w_bits and step == STEPS // 2:
            loss = self._go_wrong(source)
        with torch.no_grad(), student.observing("minmax"):
            student(images)
        ctx.progress(step + 1, STEPS, loss=loss)
        ctx.checkpoint(lambda: {"step": step + 1, "student": student.state_dict(), "source": source.state_dict()})

    def _go_wrong(self, source: SampleSource) -> Any:
        import torch

        match self.params.how:
            case "raises":
                raise ValueError("the quantizer's own mistake")
            case "exits":
                sys.exit(5)
            case "dies":
                os.abort()
            case "memory":
                raise MemoryError
            case "asks-otherwise":
                source.sample(3)
            case "draws-otherwise":
                torch.rand(())
        return torch.tensor(torch.nan if self.params.how == "nan" else 1.0)


class Halved(Fragile):
    """Overrides `quantize` alone: the `quantize_many` that it inherits would make other students."""

    name = "halved"

    def quantize(self, teacher: nn.Module, source: SampleSource, ctx: Context) -> Student:
        student = super().quantize(teacher, source, ctx)
        for parameter in student.parameters():
            parameter.data.mul_(0.5)
        return student


@hookimpl
def dfqbench_methods() -> list[Offer]:
    return [Offer(cls.name, f":{cls.__name__}") for cls in (Feeds, FeedsSilently, MakesItsOwn)]


@hookimpl
def dfqbench_quantizers() -> list[Offer]:
    return [Offer("fragile", ":Fragile"), Offer("halved", ":Halved")]
