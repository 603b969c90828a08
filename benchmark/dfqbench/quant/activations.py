"""Modules and functions that count as activation functions.

Gates (sigmoid, hard-sigmoid, tanh, softmax) are left out: their output multiplies another tensor and is never the
input of a convolution.
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

_MODULE_NAMES = "ReLU ReLU6 LeakyReLU PReLU RReLU ELU CELU SELU SiLU Mish GELU Hardswish Hardtanh Softplus"
_MODULES: tuple[type[nn.Module], ...] = tuple(getattr(nn, name) for name in _MODULE_NAMES.split())
_FUNCTION_NAMES = (
    "relu relu_ relu6 leaky_relu leaky_relu_ prelu rrelu elu elu_ celu selu silu mish gelu hardswish hardtanh softplus"
)
FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    (torch.relu, torch.relu_, torch.selu, torch.celu, torch.prelu, *(getattr(F, n) for n in _FUNCTION_NAMES.split()))
)
METHODS: frozenset[str] = frozenset({"relu", "relu_"})
_TIMM_NAMES = ("Swish", "Mish", "HardSwish", "HardMish", "PReLU", "GELU", "GELUTanh", "QuickGELU", "LeakyReLU")


@cache
def _timm_modules() -> tuple[type[nn.Module], ...]:
    layers = vars(importlib.import_module("timm.layers"))
    names = [name for name in layers if name.endswith("Me") and "Sigmoid" not in name and "Tanh" not in name]
    classes = [layers.get(name) for name in (*_TIMM_NAMES, *names)]
    return tuple(cls for cls in classes if isinstance(cls, type) and issubclass(cls, nn.Module))


def is_activation(module: nn.Module) -> bool:
    """Check whether a module is an activation function of torch or timm."""
    # Importing timm takes seconds; before its import no module can be of its classes.
    return isinstance(module, _MODULES) or ("timm.layers" in sys.modules and isinstance(module, _timm_modules()))
