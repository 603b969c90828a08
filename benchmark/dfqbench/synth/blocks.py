"""BatchNorm with the residual and the ReLU that follow it, and the moments of its input: one pass over the map."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dfqbench.api import Unavailable
from dfqbench.native import passes
from dfqbench.quant.slices import keep_order_of_slices
from dfqbench.quant.tail import in_place, replace_tail, tail_of
from dfqbench.quant.trace import WEIGHTED, trace
from dfqbench.synth.moments import Moments, moments_gradient
from dfqbench.synth.watched import affine_of_layer, can_watch

BLOCKS = "watched_blocks"
"""Name under which the graph's blocks are kept."""


class Note(Protocol):
    """Is told of a layer's input, and of its moments where they are known."""

    def __call__(self, x: Tensor, moments: Moments | None = None) -> None:
        """Takes x (N, C, H, W)."""
        ...


Noter = Callable[[str, nn.BatchNorm2d], Note]
"""Gives a BatchNorm layer, by name, somebody who is told of its inputs."""
_MODULES: dict[type[nn.Module], float] = {nn.ReLU: torch.inf, nn.ReLU6: 6.0}
_FUNCTIONS: dict[Any, float] = {
    torch.relu: torch.inf,
    torch.relu_: torch.inf,
    F.relu: torch.inf,
    F.relu_: torch.inf,
    F.relu6: 6.0,
}
_METHODS: dict[Any, float] = {"relu": torch.inf, "relu_": torch.inf}
_SIMPLE = (bool, int, float, complex, str, bytes, type(None))


@dataclass(frozen=True, slots=True)
class BlockGraph:
    """A network as a graph in which blocks are single calls.

    Attributes:
        network: takes and gives what the network does, and shares its modules.
        order: names of the BatchNorm layers in the order in which the network itself calls them.
    """

    network: fx.GraphModule
    order: dict[str, int]


def block_graph(network: nn.Module, noter: Noter) -> BlockGraph | None:
    """Finds the blocks of a network.

    Args:
        network: in eval mode, on the CPU, nothing in it hooked.
        noter: whom it gives a layer is told of the layer's inputs while the graph runs.

    Returns:
        The graph; None where there is no block, or where it is not plain that the graph computes what the network does:
        the network cannot be traced or keeps notes while it runs, a tensor that others read is changed in place, a
        tensor is made from nothing, or a BatchNorm layer is called more than once or in a part that cannot be traced.
    """
    traced = _traced(network)
    if traced is None or any(not _is_plain(traced, node) for node in traced.graph.nodes):
        return None
    norms = [node for node in traced.graph.nodes if _is_norm(traced, node)]
    order = {str(node.target): index for index, node in enumerate(norms)}
    layers = [name for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    if len(order) < len(norms) or set(layers) != set(order):
        return None
    traced.add_module(BLOCKS, nn.ModuleDict())
    found = [_replace(traced, node, noter) for node in norms]
    if not any(found):
        return None
    keep_order_of_slices(traced)
    return BlockGraph(traced, order)


def facts_of(network: nn.Module) -> list[Any]:
    """What a forward pass may branch on: modules, and their numbers, texts and switches.

    A graph is right for one such list.
    """
    return [
        (name, type(module), {key: value for key, value in vars(module).items() if isinstance(value, _SIMPLE)})
        for name, module in network.named_modules()
    ]


def _traced(network: nn.Module) -> fx.GraphModule | None:
    """The network as a graph; None where it cannot be traced, or where its modules were written to."""
    before = [(module, dict(vars(module))) for module in network.modules()]
    try:
        traced = trace(network)
    except Unavailable:
        traced = None
    for module, attributes in before:
        now = vars(module)
        if now.keys() != attributes.keys() or any(now[key] is not value for key, value in attributes.items()):
            # What tracing has left there is no tensor.
            now.clear()
            now.update(attributes)
            traced = None
    return traced


def _is_plain(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node neither holds a tensor made while tracing nor changes one that others may read."""
    if node.op == "get_attr":
        return not str(node.target).startswith("_tensor_constant")
    if not in_place(traced, node):
        return True
    changed = node.args[0] if node.args else None
    if not isinstance(changed, fx.Node) or node.target is operator.setitem or len(changed.users) > 1:
        return False
    if in_place(traced, changed):
        return _is_plain(traced, changed)
    if changed.op == "call_module":
        # Others may give their input itself, or a view of it.
        return isinstance(traced.get_submodule(str(changed.target)), (*WEIGHTED, _BatchNorm))
    return changed.op == "call_function" and changed.target in {operator.add, torch.add}


def _is_norm(traced: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and type(traced.get_submodule(str(node.target))) is nn.BatchNorm2d


def _replace(traced: fx.GraphModule, norm: fx.Node, noter: Noter) -> bool:
    """Puts a block in the place of a BatchNorm layer and what follows it; whether there was one."""
    tail = tail_of(traced, norm)
    ceiling = None if tail is None else _ceiling(traced, tail.last)
    if tail is None or ceiling is None:
        return False
    keeps_type = tail.addition is not None and in_place(traced, tail.addition)
    layer = traced.get_submodule(str(norm.target))
    if not isinstance(layer, nn.BatchNorm2d):
        raise TypeError(f"{norm.target} is no BatchNorm layer")
    blocks = traced.get_submodule(BLOCKS)
    name = f"b{len(list(blocks.children()))}"
    note = noter(str(norm.target), layer)
    blocks.add_module(name, WatchedBlock(layer, ceiling, note, keeps_type=keeps_type))
    with traced.graph.inserting_before(tail.last):
        block = traced.graph.call_module(f"{BLOCKS}.{name}", (norm.args[0], tail.residual))
    replace_tail(traced, norm, tail, block)
    return True


def _ceiling(traced: fx.GraphModule, node: fx.Node) -> float | None:
    """Where an activation clips from above (infinity: nowhere); None for other calls."""
    if node.op == "call_module":
        return _MODULES.get(type(traced.get_submodule(str(node.target))))
    if len(node.args) != 1:
        return None
    known: dict[Any, float] = _FUNCTIONS if node.op == "call_function" else _METHODS
    return known.get(node.target)


class WatchedBlock(nn.Module):
    """clip(BatchNorm(x) + residual, 0, ceiling) of a frozen BatchNorm layer; tells the moments of x."""

    def __init__(self, layer: nn.BatchNorm2d, ceiling: float, note: Note, *, keeps_type: bool) -> None:
        super().__init__()
        self._keeps_type = keeps_type  # as an addition in place does
        self.layer = layer
        self._ceiling = ceiling
        self._note = note

    def forward(self, x: Tensor, residual: Any = None) -> Tensor:
        """Computes the block for x and residual (N, C, H, W)."""
        layer = self.layer
        # The other operand of an addition may be a number.
        alike = residual is None or (
            isinstance(residual, Tensor) and residual.shape == x.shape and residual.dtype == x.dtype
        )
        if not can_watch(layer, x) or not passes.fits(x) or not alike:
            out: Tensor = layer(x)
            if residual is not None:
                out = out.add(residual).to(out.dtype) if self._keeps_type else out + residual
            return F.relu(out) if self._ceiling == torch.inf else F.hardtanh(out, 0.0, self._ceiling)
        out, mean, var = _WatchedBlock.apply(x, residual, affine_of_layer(layer), self._ceiling)
        self._note(x, Moments(mean, var))
        return out


class _WatchedBlock(torch.autograd.Function):
    """x, residual -> the block's output, mean and biased variance of x over positions for each sample and channel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, affine: passes.Affine, ceiling: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        out, mean, var = passes.block_forward(x, affine, residual=residual, ceiling=ceiling)
        ctx.save_for_backward(x, residual, mean, *affine)
        ctx.ceiling = ceiling
        return out, mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, residual, mean, scale, shift = ctx.saved_tensors
        to_moments = moments_gradient(x, mean, grads[1], grads[2])
        to_x, to_residual = passes.block_backward(
            x, grads[0], (scale, shift), to_moments, residual=residual, ceiling=ctx.ceiling
        )
        return to_x, to_residual, None, None
