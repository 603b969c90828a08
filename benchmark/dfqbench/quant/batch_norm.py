"""BatchNorm in a student: split from a fused activation, folded into a convolution, or fused with what follows it."""

from __future__ import annotations

import operator as python_operator
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dfqbench.quant.operators import operator
from dfqbench.quant.trace import WEIGHTED, BatchNorm, called_module, has_hooks

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_ADDITIONS: frozenset[Any] = frozenset({python_operator.add, python_operator.iadd, torch.add, "add", "add_"})
_MODULES: dict[type[nn.Module], float] = {nn.ReLU: torch.inf, nn.ReLU6: 6.0}
_FUNCTIONS: dict[Any, float] = {
    torch.relu: torch.inf,
    torch.relu_: torch.inf,
    F.relu: torch.inf,
    F.relu_: torch.inf,
    F.relu6: 6.0,
    "relu": torch.inf,
    "relu_": torch.inf,
}


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
        residual: added before the activation; of the same shape, or broadcastable to it.
        weight: (C,), or None: 1.
        bias: (C,), or None: 0.
        mean: running mean (C,).
        var: running variance (C,).
        eps: added to the variance.
        upper: where the activation clips from above: 6 for ReLU6, infinity for ReLU.
    """
    # BatchNorm's output is new memory that no gradient needs, so the rest is computed in place.
    out = F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
    if residual is not None:
        out = out.add_(residual)
    return torch.relu_(out) if upper == torch.inf else F.hardtanh(out, 0.0, upper, inplace=True)


class BatchNormAct2d(nn.BatchNorm2d):
    """A BatchNorm layer in eval mode, with the residual sum and the activation that follow it.

    Attributes:
        upper: where the activation clips from above: 6 for ReLU6, infinity for ReLU.
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


@dataclass(frozen=True, slots=True)
class _Pattern:
    """BatchNorm, an optional addition of another tensor, and an activation, each read by the next alone."""

    norm: fx.Node
    addition: fx.Node | None
    residual: fx.Node | None
    activation: fx.Node
    upper: float


def fuse_batch_norm_act(traced: fx.GraphModule, example: Tensor) -> None:
    """Replace, in place, BatchNorm + residual sum + ReLU or ReLU6 by calls of `BatchNormAct2d`.

    The fused layer stands under the name of the BatchNorm layer, with the same parameters and buffers.

    Args:
        traced: in eval mode.
        example: (N, C, H, W), any values; one forward pass finds the shapes.
    """
    with torch.no_grad():
        ShapeProp(traced).propagate(example)
    for node in list(traced.graph.nodes):
        pattern = _match(traced, node)
        if pattern is not None:
            _replace(traced, pattern)
    traced.graph.lint()
    traced.recompile()


def _match(traced: fx.GraphModule, norm: fx.Node) -> _Pattern | None:
    layer = called_module(traced, norm)
    if type(layer) is not nn.BatchNorm2d or layer.running_mean is None or has_hooks(layer):
        return None
    if sum(node.target == norm.target for node in traced.graph.nodes) > 1 or not _is_fresh(traced, norm.args[0]):
        return None
    addition, residual, after = None, None, _only_user(norm)
    if after is not None and after.target in _ADDITIONS and after.op in {"call_function", "call_method"}:
        addition, residual, after = after, _other_operand(after, norm), _only_user(after)
        # The sum is taken where the activation stands: nothing may come between that could change the residual.
        if residual is None or after is not addition.next:
            return None
    upper = None if after is None else _upper(traced, after)
    return None if after is None or upper is None else _Pattern(norm, addition, residual, after, upper)


def _is_fresh(traced: fx.GraphModule, node: Any) -> bool:
    """Check that a node is a layer's output with one reader, so that it may be read later than it is now."""
    return isinstance(called_module(traced, node), WEIGHTED) and len(node.users) == 1


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _other_operand(addition: fx.Node, norm: fx.Node) -> fx.Node | None:
    """Return the other tensor of an addition, if it has the same shape and type and stays as it is."""
    others = [argument for argument in addition.args if argument is not norm]
    if len(addition.args) != 2 or addition.kwargs or len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    changes_first = addition.target in {python_operator.iadd, "add_"}
    if changes_first and addition.args[0] is not norm:
        return None
    kinds = [_kind(node) for node in (norm, others[0])]
    return others[0] if kinds[0] is not None and kinds[0] == kinds[1] else None


def _kind(node: fx.Node) -> tuple[torch.Size, torch.dtype] | None:
    meta: Any = node.meta.get("tensor_meta")
    return (meta.shape, meta.dtype) if hasattr(meta, "shape") else None


def _upper(traced: fx.GraphModule, node: fx.Node) -> float | None:
    """Return where an activation function clips from above; None for other calls."""
    module = called_module(traced, node)
    if module is not None:
        return None if has_hooks(module) else _MODULES.get(type(module))
    is_call = node.op in {"call_function", "call_method"} and len(node.args) == 1
    return _FUNCTIONS.get(node.target) if is_call else None


def _replace(traced: fx.GraphModule, pattern: _Pattern) -> None:
    name = str(pattern.norm.target)
    layer = traced.get_submodule(name)
    if not isinstance(layer, nn.BatchNorm2d):
        raise TypeError(f"{name} is no BatchNorm layer")
    traced.set_submodule(name, BatchNormAct2d.from_batch_norm(layer, pattern.upper))
    with traced.graph.inserting_before(pattern.activation):
        # Two arguments always: a plain BatchNorm layer that is put in this place later then fails instead of silently
        # leaving out the activation.
        fused = traced.graph.call_module(name, (pattern.norm.args[0], pattern.residual))
    pattern.activation.replace_all_uses_with(fused)
    for node in (pattern.activation, pattern.addition, pattern.norm):
        if node is not None:
            traced.graph.erase_node(node)


def unfuse_norm_activations(network: nn.Module) -> None:
    """Splits timm's fused BatchNorm-and-activation layers into their parts, in place.

    The parts are seen by later steps as the plain layers that they are.
    """
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
    own = plain.state_dict().keys()
    plain.load_state_dict({key: value for key, value in fused.state_dict().items() if key in own})
    plain.to(next(iter(fused.state_dict().values())).device)
    parts: OrderedDict[str, nn.Module] = OrderedDict(bn=plain)
    drop = getattr(fused, "drop", None)
    if isinstance(drop, nn.Module):
        parts["drop"] = drop
    parts["act"] = fused.get_submodule("act")
    return nn.Sequential(parts).train(fused.training)


def fold_batchnorm(traced: fx.GraphModule) -> None:
    """Folds each BatchNorm into the convolution that directly precedes it, in place.

    Left alone: a convolution whose output is also used elsewhere, and modules called more than once.
    """
    calls = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        pair = _foldable(traced, node, calls)
        if pair is None:
            continue
        before, convolution, norm = pair
        with torch.no_grad():
            traced.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()


def _foldable(traced: fx.GraphModule, node: fx.Node, calls: Counter[str]) -> tuple[fx.Node, Conv, BatchNorm] | None:
    if node.op != "call_module" or calls[str(node.target)] != 1:
        return None
    norm = traced.get_submodule(str(node.target))
    before = node.args[0] if node.args else None
    if not isinstance(norm, BatchNorm) or norm.running_mean is None or not isinstance(before, fx.Node):
        return None
    if before.op != "call_module" or len(before.users) != 1 or calls[str(before.target)] != 1:
        return None
    convolution = traced.get_submodule(str(before.target))
    if not isinstance(convolution, Conv):
        return None
    return before, convolution, norm
