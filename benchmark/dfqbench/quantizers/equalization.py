"""Steps of DFQ on a student whose BatchNorm is folded (Nagel et al., ICCV 2019; methods2.md 3).

Equalization of the weights' ranges, absorption of large biases, and analytic bias correction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from dfqbench.api import ModelCard
from dfqbench.quant import Student
from dfqbench.quant.batch_norm_ranges import channel_stats
from dfqbench.quant.fake_quantize_modules import FakeQuantize
from dfqbench.quant.student import float_weight

_TRANSPARENT = (FakeQuantize, nn.Identity, nn.Dropout, nn.Dropout2d)
"""Modules between two convolutions that a scale passes, as long as a `FakeQuantize` has no range yet."""
_SCALABLE = (nn.ReLU, nn.ReLU6, nn.PReLU, nn.LeakyReLU)
"""Activations with f(x / s) = f(x) / s for s > 0; ReLU6 once its bound is removed."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two convolutions of which the second alone reads the first.

    Attributes:
        first: convolution with C output channels.
        second: convolution with C input channels, possibly depthwise.
        activation: node of the activation between them, or None.
    """

    first: nn.Conv2d
    second: nn.Conv2d
    activation: fx.Node | None


def convolution_pairs(student: Student) -> list[Pair]:
    """Return the pairs of convolutions with nothing or one scalable activation between, in order of execution."""
    graph, modules = student.graph, dict(student.network.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    pairs = []
    for node in graph.nodes:
        first, activation, reader = modules.get(str(node.target)), None, node
        if node.op != "call_module" or not isinstance(first, nn.Conv2d):
            continue
        while len(reader.users) == 1:
            (reader,) = reader.users
            module = modules.get(str(reader.target)) if reader.op == "call_module" else None
            is_activation = isinstance(module, _SCALABLE) or reader.target in student.RELUS
            if is_activation and activation is None:
                activation = reader
            elif not isinstance(module, _TRANSPARENT):
                break
        else:
            continue
        if isinstance(module, nn.Conv2d) and calls[node.target] == calls[reader.target] == 1:
            pairs.append(Pair(first, module, activation))
    return pairs
