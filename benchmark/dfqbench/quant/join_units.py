"""Lets blocks of a traced network compute the convolutions before them, and residual blocks both of theirs."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from dfqbench.native import fused
from dfqbench.quant.blocks import block_output
from dfqbench.quant.tail import is_identity, nothing_happens
from dfqbench.quant.trace import called_module
from dfqbench.quant.units import conv_output, inner_output, unit_output


def join_units(traced: fx.GraphModule) -> None:
    """Lets, in place, blocks compute the 3x3 convolutions before them, and residual blocks both of theirs.

    In evaluation each call is made where it was. The modules stay where they are, under their names.
    """
    for block in [node for node in traced.graph.nodes if node.target is block_output]:
        taken = block.args[2]
        if _is_square(called_module(traced, taken)) and nothing_happens(traced, taken, block):
            _replace_convolution(traced, taken)
            block.target = unit_output
    for last in [node for node in traced.graph.nodes if node.target is unit_output]:
        conv, residual = last.args[2:4]
        first = conv.args[1]
        if _is_inner(first) and nothing_happens(traced, first, conv) and _comes_from(traced, residual, first):
            first.target, first.args, first.kwargs = inner_output, first.args[:3], {}
    traced.graph.lint()
    traced.recompile()


def _replace_convolution(traced: fx.GraphModule, node: fx.Node) -> None:
    with traced.graph.inserting_before(node):
        conv = traced.graph.get_attr(str(node.target))
        waiting = traced.graph.call_function(conv_output, (conv, node.args[0]))
    waiting.meta["is_wrapped"] = True  # one call, too, where the student is traced again
    node.replace_all_uses_with(waiting)
    traced.graph.erase_node(node)


def _is_inner(node: Any) -> bool:
    """Whether it is a unit without a residual, and one other call alone reads its output."""
    is_unit = isinstance(node, fx.Node) and node.target is unit_output
    return is_unit and node.args[3] is None and len(node.users) == 1


def _comes_from(traced: fx.GraphModule, residual: Any, first: fx.Node) -> bool:
    """Whether a residual is what `first` takes, through an identity or not."""
    source: Any = first.args[2]
    through = residual.args[0] if is_identity(called_module(traced, residual)) else residual
    return through is source.args[1]


def _is_square(module: nn.Module | None) -> bool:
    """Whether it may be a convolution that the library takes."""
    return (
        isinstance(module, nn.Conv2d)
        and (module.kernel_size, module.stride, module.padding) == ((3, 3), (1, 1), (1, 1))
        and (module.dilation, module.groups, module.bias) == ((1, 1), 1, None)
        and fused.fits_channels(module.in_channels, module.out_channels)
    )
