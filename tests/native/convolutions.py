"""What tests of the library's convolutions share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from dfqbench.native import fused
from dfqbench.native.autocast import Autocast
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, channels-last."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last)


class Counted:
    """Weights, outputs and inputs, whose convolutions a module computed by its `convolved`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
        self.shapes: list[tuple[int, ...]] = []
        plain: Callable[..., Tensor] = module.convolved

        def counted(x: Tensor, weight: Tensor, *more: object, **options: object) -> Tensor:
            self.shapes.append(tuple(weight.shape[:2]))
            return plain(x, weight, *more, **options)

        monkeypatch.setattr(module, "convolved", counted)


class Asked(TorchFunctionMode):
    """Notes what it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_units() -> Iterator[list[tuple[int, ...]]]:
    """Weights, outputs and inputs, whose convolutions were computed together with the block that follows."""
    shapes: list[tuple[int, ...]] = []
    plain = fused.forward

    def forward(x: Tensor, weight: Tensor, *more: Any, **options: Any) -> tuple[Tensor, Tensor]:
        shapes.append(tuple(weight.shape[:2]))
        return plain(x, weight, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "forward", forward)
        yield shapes


def learned(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Output and all gradients of a network in training, by whatever is in use."""
    network.zero_grad()
    x = images.clone().requires_grad_()
    with Autocast(CPU, enabled=False):
        out = network(x)
    out.square().sum().backward()
    assert x.grad is not None
    return [out.detach(), x.grad, *(p.grad.clone() for p in network.parameters() if p.grad is not None)]


def second_derivative(conv: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of a convolution, in its input, by whatever is in use."""
    leaf = x.clone().requires_grad_()
    with Autocast(CPU, enabled=False):
        out = conv(leaf)
    (first,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf)
    return second


def assert_no_thread_changes(compute: Callable[[], list[Tensor | None]]) -> None:
    """Holds results of two and three threads against those of one, bit for bit."""
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(compute())
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert one is not None
            assert other is not None
            assert torch.equal(one, other)
