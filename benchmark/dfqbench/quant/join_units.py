"""Joins, in a traced network, blocks and the convolutions before them, and residual blocks of two."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from dfqbench.native import fused
from dfqbench.quant.blocks import block_output
from dfqbench.quant.tail import is_identity, nothing_happens
from dfqbench.quant.trace import called_module
from dfqbench.quant.units import residual_output, unit_output


def join_units(traced: fx.GraphModule) -> None:
    """Makes one call, in place, of each block and the 3x3 convolution before it, then of two with a shortcut over both.

    A convolution is then computed where its block is. The modules stay where they are, under their names.
    """
    for block in [node for node in traced.graph.nodes if node.target is block_output]:
        norm, quantizer, taken, residual = block.args
        if _is_square(called_module(traced, taken)) and nothing_happens(traced, taken, block):
            with traced.graph.inserting_before(block):
                conv = traced.graph.get_attr(str(taken.target))
                unit = traced.graph.call_function(
                    unit_output, (conv, norm, quantizer, taken.args[0], residual), block.kwargs
                )
            _replace(traced, block, unit, taken)
    for last in [node for node in traced.graph.nodes if node.target is unit_output]:
        *parts, first, residual = last.args
        shortcut = residual if is_identity(called_module(traced, residual)) and len(residual.users) == 1 else None
        source = residual if shortcut is None else shortcut.args[0]
        later = () if shortcut is None else (shortcut,)
        if _begins_at(first, source) and all(first < node for node in later) and nothing_happens(traced, first, last):
            with traced.graph.inserting_before(last):
                through = None if shortcut is None else traced.graph.get_attr(str(shortcut.target))
                whole = traced.graph.call_function(
                    residual_output, (*first.args[:3], *parts, source, through), last.kwargs
                )
            _replace(traced, last, whole, first, *later)
    traced.graph.lint()
    traced.recompile()


def _is_square(module: nn.Module | None) -> bool:
    """Whether it may be a convolution that the library takes."""
    return (
        isinstance(module, nn.Conv2d)
        and (module.kernel_size, module.stride, module.padding) == ((3, 3), (1, 1), (1, 1))
        and (module.dilation, module.groups, module.bias) == ((1, 1), 1, None)
        and fused.fits_channels(module.in_channels, module.out_channels)
    )


def _begins_at(first: Any, source: Any) -> bool:
    """Whether `first` is a unit without a residual that takes `source`, and one other call alone reads its output."""
    return (
        isinstance(first, fx.Node)
        and first.target is unit_output
        and first.args[3] is source
        and first.args[4] is None
        and len(first.users) == 1
    )


def _replace(traced: fx.GraphModule, last: fx.Node, by: fx.Node, *before: fx.Node) -> None:
    by.meta["is_wrapped"] = True  # one call, too, where the student is traced again
    last.replace_all_uses_with(by)
    for node in (last, *before):
        traced.graph.erase_node(node)
