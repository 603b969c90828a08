"""Activation ranges from BatchNorm's parameters alone, without an image (range rule `bn`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dfqbench.api.card import ModelCard
from dfqbench.api.errors import Unavailable
from dfqbench.quant.activations import FUNCTIONS, METHODS, is_activation
from dfqbench.quant.batch_norm import ADDITIONS, BatchNormAct2d, output_stats
from dfqbench.quant.fake_quantize_modules import FakeQuantize
from dfqbench.quant.range_rules import BN_DEVIATIONS
from dfqbench.quant.student import Student
from dfqbench.quant.trace import BatchNorm

_POINTS = 1001
"""Points at which an activation function is evaluated, for its range and for its moments."""
_TAIL = 6.0
"""Standard deviations to both sides of the mean that moments are integrated over."""
_SAME_MODULES = (
    *(nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d),
)
_SAME: frozenset[Any] = frozenset(
    {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.dropout, torch.flatten, torch.mean}
    | {"flatten", "mean", "contiguous"}
)
"""Modules, functions and methods that are taken to leave mean, deviation and bounds of a channel as they are."""


@dataclass(frozen=True, slots=True)
class ChannelStats:
    """What is known of a tensor's channels, each (C,): mean, standard deviation, lower and upper bound."""

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor


def set_ranges_from_batchnorm(student: Student, card: ModelCard, deviations: float = BN_DEVIATIONS) -> None:
    """Set all activation ranges of a student from BatchNorm's parameters, without an image.

    A BatchNorm layer's output is taken as normal with mean beta and standard deviation |gamma| in each channel, cut off
    at n deviations. After ReLU the range is [min max(0, beta - n gamma), max beta + n gamma] over the channels (Nagel
    et al. 2019); other activation functions are evaluated between the bounds. A sum adds means and variances, those
    after an activation being its moments. Pooling leaves a channel as it is, padding adds zeros. The image's range is
    that of black and white pixels. The effect of quantization on the values is left out.

    For a student that :func:`prepare` has just made, before its BatchNorm layers train. Where BatchNorm was folded into
    a convolution, `beta` and `gamma` are its buffers `bn_mean` and `bn_std`: what rescales the weights rescales these.

    Args:
        student: its ranges are set.
        card: the teacher's card.
        deviations: n.

    Raises:
        Unavailable: a quantized tensor has no BatchNorm before it, or lies in a part that cannot be traced; no range is
            changed.
    """
    called = {
        student.network.get_submodule(str(node.target)): known
        for node, known in channel_stats(student, card, deviations).items()
        if node.op == "call_module"
    }
    quantizers = student.activation_quantizers()
    unknown = [quantizer.name for quantizer in quantizers if called.get(quantizer) is None]
    if unknown:
        names = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        raise Unavailable(
            f"range rule 'bn': the values of {names} do not follow from BatchNorm",
            "use a rule that takes images, such as minmax",
        )
    for quantizer in quantizers:
        known = called[quantizer]
        if known is not None:
            quantizer.set_range(known.low.min(), known.high.max())


def channel_stats(
    student: Student, card: ModelCard, deviations: float = BN_DEVIATIONS
) -> dict[fx.Node, ChannelStats | None]:
    """Return what follows from BatchNorm of the output of each node of a student's graph; None: nothing.

    See :func:`set_ranges_from_batchnorm`, which it serves; arguments as there.
    """
    return _Propagation(student.network, card, deviations).stats_of_nodes()


class _Propagation(fx.Interpreter):
    """Runs a student's graph on one black image, and derives the `ChannelStats` of each node that can be known."""

    def __init__(self, network: nn.Module, card: ModelCard, deviations: float) -> None:
        if not isinstance(network, fx.GraphModule):
            raise TypeError("the student's network is no traced graph")
        super().__init__(network)
        self._card = card
        self._deviations = deviations
        self._stats: dict[fx.Node, ChannelStats | None] = {}

    @torch.no_grad()
    def stats_of_nodes(self) -> dict[fx.Node, ChannelStats | None]:
        """Return what is known of the output of each node."""
        parameter = next(self.module.parameters(), torch.empty(0))
        self.run(parameter.new_zeros(1, *self._card.input_size))
        return self._stats

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node's value and statistics."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        value = super().run_node(n)
        self._stats[n] = self._derive(n, args, kwargs, value)
        return value

    def _derive(self, node: fx.Node, args: Any, kwargs: Any, value: Any) -> ChannelStats | None:
        inputs = [self._stats.get(each) if isinstance(each, fx.Node) else None for each in node.args]
        if node.op == "placeholder":
            ends = self._card.input_stats
            known = (ends.mean, ends.std, self._card.lowest, self._card.highest)
            return ChannelStats(*(value.new_tensor(part) for part in known))
        if node.op == "call_module":
            return self._after_module(node, self.module.get_submodule(str(node.target)), inputs)
        if node.target in ADDITIONS:
            return self._sum(*inputs) if len(inputs) == 2 and not kwargs else None
        if node.target in {torch.cat, torch.concat}:
            parts: Any = node.args[0]
            return _concatenated([self._stats.get(part) for part in parts], value)
        x = inputs[0] if inputs else None
        if x is None or not isinstance(value, Tensor):  # a shape, for example
            return None
        return _after_function(node.target, x, args[1:], kwargs, value)

    def _after_module(
        self, node: fx.Node, module: nn.Module, inputs: Sequence[ChannelStats | None]
    ) -> ChannelStats | None:
        x = inputs[0]
        if isinstance(module, BatchNormAct2d):
            x = self._normal(*output_stats(module))
            if node.args[1] is not None:
                x = self._sum(x, inputs[1])
            return None if x is None else _activated(lambda values: values.clamp(0.0, module.upper), x)
        if isinstance(module, BatchNorm):
            return self._normal(*output_stats(module))
        if hasattr(module, "bn_mean"):  # a convolution with BatchNorm folded into it
            return self._normal(module.get_buffer("bn_mean"), module.get_buffer("bn_std"))
        if is_activation(module):
            return None if x is None else _activated(module, x)
        return x if isinstance(module, (FakeQuantize, *_SAME_MODULES)) else None

    def _normal(self, mean: Tensor, std: Tensor) -> ChannelStats:
        return ChannelStats(mean, std, mean - self._deviations * std, mean + self._deviations * std)

    def _sum(self, first: ChannelStats | None, second: ChannelStats | None) -> ChannelStats | None:
        if first is None or second is None or first.mean.shape != second.mean.shape:
            return None
        return self._normal(first.mean + second.mean, torch.hypot(first.std, second.std))


def _after_function(target: Any, x: ChannelStats, args: Any, kwargs: Any, value: Tensor) -> ChannelStats | None:
    """Return what is known after a function or tensor method of one tensor, whose result is `value`."""
    if target in FUNCTIONS or target in METHODS:
        function = getattr(torch, target) if target in METHODS else target
        return _activated(lambda values: function(values, *args, **kwargs), x)
    if target is F.pad:
        return _padded(x, *args, **kwargs)
    flattens = target in {"view", "reshape"} and value.ndim == 2
    # A mean over the channels is another tensor.
    keeps_channels = value.ndim > 1 and value.shape[1] % len(x.mean) == 0
    return x if keeps_channels and (target in _SAME or flattens) else None


def _activated(function: Callable[[Tensor], Tensor], x: ChannelStats) -> ChannelStats:
    """Apply an element-wise function: bounds from the values between the bounds, moments by integration."""
    points = torch.linspace(0.0, 1.0, _POINTS, device=x.mean.device)[:, None]
    # As images (points, C, 1, 1), since a function may have parameters for each channel.
    between = function(torch.lerp(x.low, x.high, points)[..., None, None]).flatten(1)
    z = _TAIL * (2 * points - 1)
    weight = torch.softmax(-z.square() / 2, 0)
    values = function((x.mean + x.std * z)[..., None, None]).flatten(1)
    mean = (weight * values).sum(0)
    std = (weight * (values - mean).square()).sum(0).sqrt()
    return ChannelStats(mean, std, between.amin(0), between.amax(0))


def _concatenated(parts: Sequence[ChannelStats | None], value: Tensor) -> ChannelStats | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or sum(len(part.mean) for part in known) != value.shape[1]:
        return None
    return ChannelStats(*(torch.cat([getattr(part, name) for part in known]) for name in ChannelStats.__slots__))


def _padded(
    x: ChannelStats, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> ChannelStats | None:
    """Return the channels of images padded with zeros; new channels are zero."""
    if mode != "constant" or value:
        return None
    before_and_after = [*pad[4:6]]
    mean, std, low, high = (
        F.pad(part, before_and_after) if before_and_after else part for part in (x.mean, x.std, x.low, x.high)
    )
    return ChannelStats(mean, std, low.clamp_max(0.0), high.clamp_min(0.0))
