"""Steps of DFQ on a student with folded BatchNorm, without an image (Nagel et al., ICCV 2019; methods.md 9.2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from dfqbench.api import ModelCard
from dfqbench.quant import FakeQuantize, Student
from dfqbench.quant.batch_norm import upper_bound
from dfqbench.quant.batch_norm_ranges import channel_stats
from dfqbench.quant.student import float_bias, float_weight

_TRANSPARENT = (FakeQuantize, nn.Identity, nn.Dropout, nn.Dropout2d)
"""Modules that a scale passes; a `FakeQuantize` has no range yet."""
_HOMOGENEOUS = (nn.PReLU, nn.LeakyReLU)
"""Activations with f(x / s) = f(x) / s for s > 0, besides ReLU."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two convolutions, the second of which is all that reads the first.

    Attributes:
        first: convolution with C output channels.
        second: convolution with C input channels, depthwise or not.
        relu: name of the graph's node with the ReLU or ReLU6 between them; empty: there is none.
        bound: upper bound of that: infinity for ReLU, 6 for ReLU6.
    """

    first: nn.Conv2d
    second: nn.Conv2d
    relu: str
    bound: float


def convolution_pairs(student: Student) -> list[Pair]:
    """Return all pairs of convolutions with at most one activation between, none but ReLU, ReLU6, PReLU, LeakyReLU."""
    traced = student.traced
    modules = dict(traced.named_modules())
    calls = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
    pairs = []
    for start in traced.graph.nodes:
        first = modules.get(str(start.target)) if start.op == "call_module" else None
        if not isinstance(first, nn.Conv2d) or calls[str(start.target)] > 1:
            continue
        activations = 0
        relu, bound = "", torch.inf
        node, module = _reader(start, modules)
        while node is not None and not isinstance(module, nn.Conv2d):
            upper = upper_bound(traced, node)
            if upper is not None:
                relu, bound = node.name, upper
            elif not isinstance(module, (*_TRANSPARENT, *_HOMOGENEOUS)):
                break
            activations += not isinstance(module, _TRANSPARENT)
            node, module = _reader(node, modules)
        if node is not None and isinstance(module, nn.Conv2d) and calls[str(node.target)] == 1 and activations < 2:
            pairs.append(Pair(first, module, relu, bound))
    return pairs


def _reader(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[fx.Node | None, nn.Module | None]:
    """Return the only node that reads a node, and the module that it calls."""
    if len(node.users) != 1:
        return None, None
    (reader,) = node.users
    return reader, modules.get(str(reader.target)) if reader.op == "call_module" else None


def by_input(conv: nn.Conv2d) -> Tensor:
    """Return a view (groups, out / groups, in / groups, kernel elements) of the weight of a convolution."""
    weight = float_weight(conv)
    return weight.view(conv.groups, weight.shape[0] // conv.groups, weight.shape[1], -1)


@torch.no_grad()
def equalize(student: Student, pairs: Sequence[Pair], sweeps: int, tolerance: float, largest: float) -> None:
    """Rescale the channels between the convolutions of each pair so that both have the same range in each channel.

    The range r of a channel is max |W|: over the output channel of the first, r1, and over the input channel of the
    second, r2. With s = sqrt(r1 / r2), W1 / s and W2 s both have sqrt(r1 r2), and the network computes the same as
    before if ReLU6 is replaced by ReLU, which is done. Chains such as convolution - depthwise - convolution are pairs
    that share a layer; sweeps over all pairs end at one range for each channel of the chain.

    Args:
        student: its weights, biases, and `bn_mean` and `bn_std` of its convolutions change.
        pairs: of `convolution_pairs`.
        sweeps: most sweeps over the pairs.
        tolerance: a sweep with max |log s| below it is the last.
        largest: a channel's scale, all sweeps together, stays between 1 / `largest` and `largest`.
    """
    student.remove_upper_bounds(pair.relu for pair in pairs if pair.bound < torch.inf)
    layers = {layer for pair in pairs for layer in (pair.first, pair.second)}
    for layer in layers:
        layer.double()  # hundreds of sweeps in float32 would change the outputs
    totals = [torch.ones_like(ranges(pair)[0]) for pair in pairs]
    for _ in range(sweeps):
        change = 0.0
        for pair, total in zip(pairs, totals, strict=True):
            first, second = ranges(pair)
            scale = torch.where((first > 0) & (second > 0), (first / second).sqrt(), 1.0)
            scale = (total * scale).clamp(1 / largest, largest) / total
            total.mul_(scale)
            _rescale(pair, scale)
            change = max(change, float(scale.log().abs().max()))
        if change < tolerance:
            break
    for layer in layers:
        layer.float()


@torch.no_grad()
def ranges(pair: Pair) -> tuple[Tensor, Tensor]:
    """Return max |W| (C,) over each output channel of the first and each input channel of the second convolution."""
    return float_weight(pair.first).abs().flatten(1).amax(1), by_input(pair.second).abs().amax((1, 3)).flatten()


def _rescale(pair: Pair, scale: Tensor) -> None:
    """Divide the output of the first convolution by `scale` (C,), and multiply it into the weight of the second."""
    float_weight(pair.first).div_(scale.view(-1, 1, 1, 1))
    for part in (float_bias(pair.first), *(getattr(pair.first, name, None) for name in ("bn_mean", "bn_std"))):
        if part is not None:
            part.div_(scale)
    by_input(pair.second).mul_(scale.view(pair.second.groups, 1, -1, 1))


@torch.no_grad()
def absorb_biases(pairs: Sequence[Pair], deviations: float) -> None:
    """Move the part of a bias that ReLU lets pass unchanged to the next layer, so that activations have less range.

    c = max(0, beta - n |gamma|) is below almost all inputs of ReLU: b1 - c and b2 + sum W2 c give the same output,
    except at borders that are padded with zeros.

    Args:
        pairs: of `convolution_pairs`, after `equalize`; biases, and `bn_mean` of the first convolution change. Those
            without ReLU are left as they are.
        deviations: n.
    """
    for pair in pairs:
        first, second = pair.first, pair.second
        bias1, bias2, is_relu = float_bias(first), float_bias(second), pair.relu and pair.bound == torch.inf
        if not is_relu or not hasattr(first, "bn_mean") or bias1 is None or bias2 is None:
            continue
        mean, std = first.get_buffer("bn_mean"), first.get_buffer("bn_std")
        absorbed = (mean - deviations * std).clamp_min(0.0)
        bias1.sub_(absorbed)
        mean.sub_(absorbed)
        bias2.add_(_mean_output(float_weight(second), second.groups, absorbed))


@torch.no_grad()
def correct_biases(student: Student, card: ModelCard) -> None:
    """Take the mean error that rounding a weight causes in a layer's output out of its bias.

    With E[x] of the layer's input from BatchNorm's parameters, b - sum (W_q - W) E[x]. Layers without a bias,
    called twice, or of whose input nothing is known are left as they are.

    Args:
        student: its biases change; its weights are as they will stay.
        card: the teacher's card.
    """
    stats = channel_stats(student, card)
    calls = Counter(str(node.target) for node in stats)
    inputs = {str(node.target): stats[node.all_input_nodes[0]] for node in stats if node.all_input_nodes}
    for name, weight, quantizer in student.quantized_weights():
        layer, known = student.traced.get_submodule(name), inputs.get(name)
        bias, groups = float_bias(layer), getattr(layer, "groups", 1)
        if known is None or bias is None or calls[name] > 1 or len(known.mean) != weight.shape[1] * groups:
            continue
        bias.sub_(_mean_output(quantizer(weight) - weight, groups, known.mean))


def _mean_output(weight: Tensor, groups: int, mean: Tensor) -> Tensor:
    """Return the mean output (out,) of a weight (out, in / groups, ...), for an input of mean (in,)."""
    sums = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    return torch.einsum("goi,gi->go", sums.view(groups, -1, sums.shape[1]), mean.view(groups, -1)).flatten()
