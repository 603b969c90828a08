"""What the catalogue of cheating and careless plugins is made with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfqbench.api import Batch, Context, Fidelity, Method, Offer, Requires, SampleSource
from dfqbench.synth.source import FixedSource

Act = Callable[[nn.Module, Context], Any]


def digits() -> Path:
    """The file of the evaluation images."""
    import sklearn

    return Path(sklearn.__file__).parent / "datasets" / "data" / "digits.csv.gz"


class Noise(Method):
    title = "Cheats"
    paper = "none"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        return FixedSource(torch.randn((64, *ctx.card.input_size), generator=ctx.generator))


class Cheats(dict[str, type[Method]]):
    """Methods by name; each makes Gaussian images, as the control `noise` does, and does one wrong thing."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self._module = module

    def _add(self, act: Any, methods: dict[str, Any]) -> None:
        name = act.__name__.replace("_", "-")
        self[name] = type(name, (Noise,), {"name": name, "__doc__": act.__doc__, "__module__": self._module, **methods})

    def synthesizing(self, act: Act) -> Act:
        """Add a method that acts while it makes its images; tensors that it returns become its images."""

        def synthesize(self: Method, teacher: nn.Module, ctx: Context) -> SampleSource:
            images = act(teacher, ctx)
            return FixedSource(images) if isinstance(images, Tensor) else Noise.synthesize(self, teacher, ctx)  # type: ignore[arg-type]

        self._add(act, {"synthesize": synthesize})
        return act

    def quantizing(self, act: Callable[[nn.Module, SampleSource, Context], Any]) -> Any:
        """Add a method whose student comes from a function, or from the shared quantizer where that returns None."""

        def quantize(self: Method, teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
            student = act(teacher, source, ctx)
            return ctx.shared_quantize(teacher, source) if student is None else student

        self._add(act, {"quantize": quantize})
        return act

    def sampling(self, act: Callable[[nn.Module, Batch], Any]) -> Any:
        """Add a method that acts whenever images are drawn; a batch that the function returns is given instead."""

        class Source(FixedSource):
            teacher: nn.Module

            def sample(self, size: int) -> Batch:
                batch = super().sample(size)
                return act(self.teacher, batch) or batch

        def synthesize(self: Method, teacher: nn.Module, ctx: Context) -> SampleSource:
            source = Source(torch.randn((64, *ctx.card.input_size), generator=ctx.generator))
            source.teacher = teacher
            return source

        self._add(act, {"synthesize": synthesize})
        return act

    def offers(self, names: dict[str, Any]) -> list[Offer]:
        """Offer every method; `names` are the globals of the plugin's module."""
        names.update({method.__name__.replace("-", "_") + "_method": method for method in self.values()})
        return [Offer(name, f":{name.replace('-', '_')}_method") for name in self]
