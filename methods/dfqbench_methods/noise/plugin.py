"""The offers of the controls with random images; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt

from dfqbench.api import Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl, param

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class NoiseParams:
    """Parameters of the noise control."""

    images: PositiveInt = param(64, help="images that are drawn", source="a choice of this benchmark: as ZeroQ")
    scale: NonNegativeFloat = param(
        1.0, help="factor on the noise's standard deviation", source="inferred: the domain's own"
    )


class Noise(Method):
    """Gaussian images with the mean and standard deviation of the domain: what a method must beat."""

    name = "noise"
    title = "Gaussian noise"
    paper = "a control of this benchmark"
    fidelity = Fidelity.CONTROL
    quantizer = "calibrate"
    requires = Requires(batchnorm=False)
    control = True
    params_type = NoiseParams
    params: NoiseParams

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:  # noqa: ARG002
        """Return the source; nothing is learned."""
        import torch

        from dfqbench_methods.noise.source import NoiseSource

        stats, params = ctx.card.input_stats, self.params
        mean, std = (torch.tensor(values, device=ctx.device) for values in (stats.mean, stats.std))
        return NoiseSource(ctx.card.input_size, params.images, ctx.seed("noise"), mean, std * params.scale)


@dataclass(frozen=True)
class UniformParams:
    """Parameters of the control with uniform noise."""

    images: PositiveInt = param(64, help="images that are drawn", source="a choice of this benchmark: as ZeroQ")


class Uniform(Method):
    """Pixels that are independent and uniform from black to white."""

    name = "uniform"
    title = "Uniform noise"
    paper = "a control of this benchmark"
    fidelity = Fidelity.CONTROL
    quantizer = "calibrate"
    requires = Requires(batchnorm=False)
    control = True
    params_type = UniformParams
    params: UniformParams

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:  # noqa: ARG002
        """Return the source; nothing is learned."""
        import torch

        from dfqbench_methods.noise.source import UniformSource

        black, white = (torch.tensor(values, device=ctx.device) for values in (ctx.card.lowest, ctx.card.highest))
        return UniformSource(ctx.card.input_size, self.params.images, ctx.seed("uniform"), black, white - black)


OPENVINO = "released code (OpenVINO's Post-training Optimization Tool)"


@dataclass(frozen=True)
class FractalParams:
    """Parameters of the control with fractals."""

    images: PositiveInt = param(64, help="images that are made", source="a choice of this benchmark: as ZeroQ")
    maps: Annotated[int, Field(ge=2)] = param(7, help="most affine maps of an image; the least is 2", source=OPENVINO)
    filling: Annotated[float, Field(ge=0, le=0.3)] = param(
        0.2, help="least share of a coarse image that a fractal covers", source=f"{OPENVINO}; inferred: 64 x 64 pixels"
    )
    points: PositiveInt = param(
        4,
        help="points for each pixel",
        unit="points",
        source=f"{OPENVINO}: 200,000, here at 224 x 224; inferred: as many for each pixel at other sizes",
    )


class Fractal(Method):
    """Fractals of random iterated function systems on plain backgrounds, with shapes and edges but no objects."""

    name = "fractal"
    title = "Fractals"
    paper = "a control of this benchmark, after OpenVINO's calibration without data (2022)"
    fidelity = Fidelity.CONTROL
    quantizer = "calibrate"
    requires = Requires(batchnorm=False)
    control = True
    params_type = FractalParams
    params: FractalParams

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:  # noqa: ARG002
        """Return the source; nothing is learned."""
        from dfqbench_methods.noise.fractals import make_source

        return make_source(ctx, self.params)


@hookimpl
def dfqbench_methods() -> list[Offer]:
    """Offer the controls."""
    here = "dfqbench_methods.noise.plugin"
    return [Offer("noise", f"{here}:Noise"), Offer("uniform", f"{here}:Uniform"), Offer("fractal", f"{here}:Fractal")]
