"""Slices of feature maps whose gradients lie in memory as the maps do."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from dfqbench.quant.tail import HARMLESS, nothing_happens


def keep_order_of_slices(traced: fx.GraphModule) -> None:
    """Replaces, in place, the slices of maps that only a padding reads, as shortcuts without parameters have them.

    torch gives a slice's gradient in the order of rows of positions, whatever the map's: where that meets the gradient
    of another branch, both must be read crosswise.
    """
    for node in list(traced.graph.nodes):
        if _is_slice_of_map(node) and _is_padded_only(traced, node):
            with traced.graph.inserting_before(node):
                kept = traced.graph.call_function(sliced, node.args)
            kept.meta["is_wrapped"] = True  # one call, too, where the network is traced again
            kept.meta[HARMLESS] = True
            node.replace_all_uses_with(kept)
            traced.graph.erase_node(node)
    traced.graph.lint()
    traced.recompile()


def _is_slice_of_map(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target is not operator.getitem:
        return False
    index: Any = node.args[1]
    return (
        isinstance(index, tuple)
        and len(index) == 4
        and all(isinstance(one, slice) for one in index)
        and not any(isinstance(end, fx.Node) for one in index for end in (one.start, one.stop, one.step))
    )


def _is_padded_only(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a padding reads a slice, nobody else does, and nothing before it can change the map."""
    users = list(node.users)
    return len(users) == 1 and users[0].target is F.pad and nothing_happens(traced, node, users[0])


def sliced(x: Tensor, index: tuple[slice, ...]) -> Tensor:
    """x[index]; its gradient in x (N, C, H, W) is channels-last where x is."""
    found: Tensor = _Sliced.apply(x, index)
    return found


class _Sliced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: tuple[slice, ...]) -> Tensor:
        ctx.shape, ctx.index = x.shape, index
        is_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        ctx.order = torch.channels_last if is_last else torch.contiguous_format
        return x[index]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0]
        whole = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.order).zero_()
        whole[ctx.index] = grad
        return whole, None
