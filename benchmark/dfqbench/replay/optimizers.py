"""Optimizers whose steps can be recorded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def recordable_adam(parameters: Iterable[Tensor], *, recorded: bool, **settings: Any) -> torch.optim.Adam:
    """Adam in one pass over the parameters.

    Args:
        parameters: all on one device.
        recorded: whether its steps are recorded; the learning rate must then be a tensor on the device.
        settings: as of `torch.optim.Adam`.
    """
    parameters = list(parameters)
    on_gpu = any(parameter.is_cuda for parameter in parameters)
    optimizer = torch.optim.Adam(parameters, fused=True, capturable=recorded and on_gpu, **settings)
    # torch warns of steps that are not recorded; the first ones never are.
    optimizer._warned_capturable_if_run_uncaptured = True
    return optimizer
