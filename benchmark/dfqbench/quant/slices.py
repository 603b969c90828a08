"""Slices of feature maps whose gradients lie in memory as the maps do."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from dfqbench.native import shortcut as native
from dfqbench.native.operands import are_plain, unobserved
from dfqbench.quant.tail import HARMLESS, nothing_happens


def keep_order_of_slices(traced: fx.GraphModule) -> None:
    """Replaces, in place, the slices of maps that only a padding reads, as shortcuts without parameters have them.

    torch gives a slice's gradient in the order of rows of positions, whatever the map's: where that meets the gradient
    of another branch, both must be read crosswise. Every n-th position and zeros for new channels are one call.
    """
    for node in list(traced.graph.nodes):
        if _is_slice_of_map(node) and _is_padded_only(traced, node):
            (padding,) = node.users
            cut = _shortcut(node.args[1], padding)
            if cut is None:
                _replace(traced, node, sliced, node.args)
            else:
                _replace(traced, padding, shortcut, (node.args[0], cut))
                traced.graph.erase_node(node)
    traced.graph.lint()
    traced.recompile()


def _replace(traced: fx.GraphModule, node: fx.Node, by: Callable[..., Tensor], arguments: tuple[Any, ...]) -> None:
    with traced.graph.inserting_before(node):
        kept = traced.graph.call_function(by, arguments)
    kept.meta["is_wrapped"] = True  # one call, too, where the network is traced again
    kept.meta[HARMLESS] = True
    node.replace_all_uses_with(kept)
    traced.graph.erase_node(node)


def _shortcut(index: Any, padding: fx.Node) -> tuple[Any, Any, Any] | None:
    """Step, and new channels before and after, of a slice and a padding with zeros; None where they are others."""
    given = dict(zip(("input", "pad", "mode", "value"), padding.args, strict=False)) | padding.kwargs
    room = given["pad"] if given.get("mode", "constant") == "constant" and not given.get("value") else None
    if not isinstance(room, tuple) or len(room) != 6 or room[:4] != (0,) * 4:
        return None
    whole, step = slice(None), index[3].step
    plain = index == (whole, whole, slice(None, None, step), slice(None, None, step))
    return (step, *room[4:]) if plain and isinstance(step, int) and step > 0 else None


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


def shortcut(x: Tensor, cut: tuple[int, int, int]) -> Tensor:
    """Every n-th position of x (N, C, H, W), down and across, and zeros for new channels.

    Args:
        x: its gradient is channels-last where it is.
        cut: positions from one to the next; new channels before and after its own.
    """
    if min(cut) >= 0 and are_plain(x) and native.fits(x):
        with unobserved(x):
            shortened: Tensor = _Shortcut.apply(x, native.Shortcut(*cut))
        return shortened
    return _by_torch(x, cut)


def _by_torch(x: Tensor, cut: tuple[int, int, int]) -> Tensor:
    step, before, after = cut
    whole, some = slice(None), slice(None, None, step)
    return F.pad(sliced(x, (whole, whole, some, some)), (0, 0, 0, 0, before, after))


class _Shortcut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cut: native.Shortcut) -> Tensor:
        ctx.size, ctx.cut = x.shape, cut
        return native.shortened(x, cut)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        if not torch.is_grad_enabled():
            return native.gradient(grads[0], ctx.size, ctx.cut), None
        # Whoever asks for a second derivative gets torch's own.
        step, before, after = ctx.cut
        whole = grads[0].new_zeros(ctx.size).contiguous(memory_format=torch.channels_last)
        whole[:, :, ::step, ::step] = grads[0][:, before : grads[0].shape[1] - after]
        return whole, None


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
