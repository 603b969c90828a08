"""Sizes of a network: parameters, multiply-accumulates, layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfqbench.api.card import ModelCard

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.PReLU, nn.Sigmoid)


@dataclass(frozen=True, slots=True)
class Summary:
    """Sizes of a network.

    Attributes:
        params: parameters.
        macs: multiply-accumulates of convolutions and linear layers for one image.
        convolutions: convolution layers.
        linears: linear layers.
        batchnorms: BatchNorm layers with running statistics.
        activations: activation functions that are modules; functional ones are not counted.
    """

    params: int
    macs: int
    convolutions: int
    linears: int
    batchnorms: int
    activations: int


def summarise(module: nn.Module, card: ModelCard) -> Summary:
    """Count a network's layers, and its multiply-accumulates on one black image.

    Args:
        module: a network in eval mode.
        card: its card.
    """
    layers = list(module.modules())
    macs = 0

    def count(layer: nn.Conv2d | nn.Linear, _: Any, output: Tensor) -> None:
        nonlocal macs
        # Each output element takes as many products as one output channel has weights.
        macs += output.numel() * layer.weight[0].numel()

    hooks = [layer.register_forward_hook(count) for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
    try:
        device = next((value.device for value in module.parameters()), torch.device("cpu"))
        with torch.inference_mode():
            module(torch.zeros(1, *card.input_size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    norms = [layer for layer in layers if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    return Summary(
        params=sum(value.numel() for value in module.parameters()),
        macs=macs,
        convolutions=sum(isinstance(layer, nn.Conv2d) for layer in layers),
        linears=sum(isinstance(layer, nn.Linear) for layer in layers),
        batchnorms=sum(norm.running_mean is not None for norm in norms),
        activations=sum(isinstance(layer, _ACTIVATIONS) for layer in layers),
    )
