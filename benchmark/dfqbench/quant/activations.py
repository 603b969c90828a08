"""Which modules and functions count as activation functions.

Gates (sigmoid, hard-sigmoid, tanh, softmax) are left out: what they give multiplies another tensor and is never itself
what a convolution takes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.SiLU,
    nn.Mish,
    nn.GELU,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Softplus,
)

FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        torch.relu,
        torch.relu_,
        torch.selu,
        torch.celu,
        torch.prelu,
        F.relu,
        F.relu_,
        F.relu6,
        F.leaky_relu,
        F.leaky_relu_,
        F.prelu,
        F.rrelu,
        F.elu,
        F.elu_,
        F.celu,
        F.selu,
        F.silu,
        F.mish,
        F.gelu,
        F.hardswish,
        F.hardtanh,
        F.softplus,
    }
)

METHODS: frozenset[str] = frozenset({"relu", "relu_"})
"""Tensor methods."""

_TIMM_NAMES = ("Swish", "Mish", "HardSwish", "HardMish", "PReLU", "GELU", "GELUTanh", "QuickGELU", "LeakyReLU")


def module_types() -> tuple[type[nn.Module], ...]:
    """Torch's activation modules, and timm's own versions of them where timm is loaded.

    Its import takes seconds, and nothing can be an instance of a class that nobody has loaded.
    """
    return MODULES if "timm.layers" not in sys.modules else _with_timms()


@cache
def _with_timms() -> tuple[type[nn.Module], ...]:
    layers = importlib.import_module("timm.layers")
    extra = [getattr(layers, name) for name in _TIMM_NAMES if hasattr(layers, name)]
    extra += [getattr(layers, name) for name in dir(layers) if name.endswith("Me") and _is_ungated(name)]
    return MODULES + tuple(kind for kind in extra if isinstance(kind, type) and issubclass(kind, nn.Module))


def _is_ungated(name: str) -> bool:
    return "Sigmoid" not in name and "Tanh" not in name


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation function."""
    return isinstance(module, module_types())
