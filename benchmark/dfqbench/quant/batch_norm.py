"""BatchNorm in a student: split from a fused activation, folded into a convolution, or fused with an activation."""

from __future__ import annotations

import operator as python_operator
from collections import Counter, OrderedDict
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dfqbench.quant.operators import operator
from dfqbench.quant.trace import WEIGHTED, BatchNorm, called_module, has_hooks

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
ADDITIONS: frozenset[Any] = frozenset({python_operator.add, python_operator.iadd, torch.add, "add", "add_"})
"""Functions and tensor methods that add two tensors."""
_UPPER: dict[Any, float] = {
    **dict.fromkeys((nn.ReLU, torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"), torch.inf),
    **dict.fromkeys((nn.ReLU6, F.relu6), 6.0),
}
"""Upper bounds of the activations that are fused: modules, functions and tensor methods."""


@operator
def batch_norm_act(  # noqa: PLR0917 - operators take their arguments by position
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    upper: float,
) -> Tensor:
    """Return clip(BatchNorm(x) + residual, 0, upper), with BatchNorm's running statistics.

    Args:
        x: (N, C, H, W).
        residual: broadcastable to `x`, or None.
        weight: (C,), or None: 1.
        bias: (C,), or None: 0.
        mean: running mean (C,).
        var: running variance (C,).
        eps: added to the variance.
        upper: upper bound of the activation: 6 for ReLU6, infinity for ReLU.
    """
    # No gradient needs BatchNorm's output, so the rest is computed in place.
    out = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
    if residual is not None:
        out = out.add_(residual)
    return torch.relu_(out) if upper == torch.inf else F.hardtanh(out, 0.0, upper, inplace=True)


class BatchNormAct2d(nn.BatchNorm2d):
    """A BatchNorm layer in eval mode, with the residual sum and the activation that follow it.

    Attributes:
        upper: upper bound of the activation: 6 for ReLU6, infinity for ReLU.
    """

    upper = torch.inf

    @classmethod
    def from_batch_norm(cls, layer: nn.BatchNorm2d, upper: float) -> BatchNormAct2d:
        """Return a layer that shares parameters and buffers with `layer`."""
        fused = cls.__new__(cls)
        fused.__dict__ = dict(layer.__dict__)
        fused.upper = upper
        return fused

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the activation of BatchNorm(x) + residual, (N, C, H, W)."""
        if self.running_mean is None or self.running_var is None:
            raise ValueError("the layer keeps no running statistics")
        statistics = self.running_mean, self.running_var
        return batch_norm_act(x, residual, self.weight, self.bias, *statistics, self.eps, self.upper)


def fuse_batch_norm_act(traced: fx.GraphModule, example: Tensor) -> None:
    """Replace, in place, BatchNorm + residual sum + ReLU or ReLU6 by calls of `BatchNormAct2d`.

    The fused layer keeps the BatchNorm layer's name, parameters and buffers.

    Args:
        traced: in eval mode.
        example: (N, C, H, W), any values, for a forward pass that finds the shapes.
    """
    with torch.no_grad():
        ShapeProp(traced).propagate(example)
    for node in list(traced.graph.nodes):
        _fuse(traced, node)
    traced.graph.lint()
    traced.recompile()


def _fuse(traced: fx.GraphModule, norm: fx.Node) -> None:
    """Fuse a BatchNorm node with the addition and activation after it, each the only reader of the one before."""
    layer = called_module(traced, norm)
    if type(layer) is not nn.BatchNorm2d or layer.running_mean is None or has_hooks(layer):
        return
    source: Any = norm.args[0]
    if sum(node.target == norm.target for node in traced.graph.nodes) > 1:
        return
    # The source is read later than before: only a layer's output without another reader cannot change until then.
    if not isinstance(called_module(traced, source), WEIGHTED) or len(source.users) > 1:
        return
    addition, residual, activation = None, None, _only_user(norm)
    if activation is not None and activation.target in ADDITIONS and activation.op != "call_module":
        addition, activation = activation, _only_user(activation)
        residual = _residual(addition, norm)
        # The sum moves to the activation, so no other node may lie between that could change the residual.
        if residual is None or activation is not addition.next:
            return
    upper = None if activation is None else upper_bound(traced, activation)
    if activation is None or upper is None:
        return
    name = str(norm.target)
    traced.set_submodule(name, BatchNormAct2d.from_batch_norm(layer, upper))
    with traced.graph.inserting_before(activation):
        # Always two arguments: a plain BatchNorm layer put in this place fails instead of omitting the activation.
        fused = traced.graph.call_module(name, (source, residual))
    activation.replace_all_uses_with(fused)
    for node in (activation, addition, norm):
        if node is not None:
            traced.graph.erase_node(node)


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _residual(addition: fx.Node, norm: fx.Node) -> fx.Node | None:
    """Return the tensor that is added to `norm`, if it has the same shape and type and is not changed in place."""
    others = [argument for argument in addition.args if argument is not norm]
    if len(addition.args) != 2 or addition.kwargs or len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    changes_first = addition.target in {python_operator.iadd, "add_"}
    if changes_first and addition.args[0] is not norm:
        return None
    shapes = [_shape_and_type(node) for node in (norm, others[0])]
    return others[0] if shapes[0] is not None and shapes[0] == shapes[1] else None


def _shape_and_type(node: fx.Node) -> tuple[torch.Size, torch.dtype] | None:
    meta: Any = node.meta.get("tensor_meta")
    return (meta.shape, meta.dtype) if hasattr(meta, "shape") else None


def upper_bound(traced: fx.GraphModule, node: fx.Node) -> float | None:
    """Return the upper bound of a ReLU, infinity, or of a ReLU6; None for other nodes."""
    module = called_module(traced, node)
    if module is not None:
        return None if has_hooks(module) else _UPPER.get(type(module))
    is_call = node.op in {"call_function", "call_method"} and len(node.args) == 1
    return _UPPER.get(node.target) if is_call else None


def remove_upper_bound(traced: fx.GraphModule, name: str) -> None:
    """Replace, in place, the ReLU6 of a node by ReLU.

    Raises:
        ValueError: the graph has no ReLU6 of this name.
    """
    node = next((node for node in traced.graph.nodes if node.name == name), None)
    if node is None or upper_bound(traced, node) is None:
        raise ValueError(f"the network has no ReLU6 '{name}'")
    with traced.graph.inserting_before(node):
        relu = traced.graph.call_function(torch.relu, (node.args[0],))
    node.replace_all_uses_with(relu)
    traced.graph.erase_node(node)
    traced.recompile()


def unfuse_norm_activations(network: nn.Module) -> None:
    """Split timm's fused BatchNorm-and-activation layers into plain layers, in place."""
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and isinstance(getattr(module, "act", None), nn.Module) and path:
            network.set_submodule(path, _split(module))


def _split(fused: nn.BatchNorm2d) -> nn.Sequential:
    plain = nn.BatchNorm2d(
        fused.num_features,
        eps=fused.eps,
        momentum=fused.momentum,
        affine=fused.affine,
        track_running_stats=fused.track_running_stats,
    )
    state = fused.state_dict()
    plain.load_state_dict({key: state[key] for key in plain.state_dict()})
    plain.to(next(iter(state.values())).device)
    parts = {"bn": plain, "drop": getattr(fused, "drop", None), "act": fused.get_submodule("act")}
    modules = OrderedDict((name, part) for name, part in parts.items() if isinstance(part, nn.Module))
    return nn.Sequential(modules).train(fused.training)


def output_stats(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, (C,), of a BatchNorm layer's output: beta, |gamma| sqrt(var / (var + eps)).

    Where a channel is constant, var = 0, it stays so: its |gamma| may be anything.
    """
    variance = norm.get_buffer("running_var")
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    mean = torch.zeros_like(variance) if bias is None else bias.detach().clone()
    std = (variance / (variance + float(norm.eps))).sqrt()  # type: ignore[arg-type]
    return mean, std if weight is None else std * weight.detach().abs()


def fold_batchnorm(traced: fx.GraphModule) -> None:
    """Fold each BatchNorm into the convolution that directly precedes it, in place.

    The convolution keeps mean and standard deviation of its output, beta and |gamma| of BatchNorm, (C,), as buffers
    `bn_mean` and `bn_std` that are not saved.

    Exceptions: a convolution whose output has another reader, and modules called more than once.
    """
    calls = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or {node.op, source.op} != {"call_module"}:
            continue
        if not calls[str(node.target)] == calls[str(source.target)] == len(source.users) == 1:
            continue
        norm, convolution = (traced.get_submodule(str(called.target)) for called in (node, source))
        if isinstance(norm, BatchNorm) and norm.running_mean is not None and isinstance(convolution, Conv):
            with torch.no_grad():
                folded = fuse_conv_bn_eval(convolution, norm)
                for name, value in zip(("bn_mean", "bn_std"), output_stats(norm), strict=True):
                    folded.register_buffer(name, value, persistent=False)
                traced.set_submodule(str(source.target), folded)
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
