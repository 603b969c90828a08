"""Rewrites that change the form of a network and not its function: unfused norms, folded BatchNorm."""

from __future__ import annotations

from collections import Counter, OrderedDict

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_eval


def unfuse_norm_activations(network: nn.Module) -> None:
    """Splits timm's fused BatchNorm-and-activation layers into their parts, in place.

    The parts are seen by later steps as the plain layers that they are.
    """
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and isinstance(getattr(module, "act", None), nn.Module) and path:
            parent, _, child = path.rpartition(".")
            network.get_submodule(parent).add_module(child, _split(module))


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


def fold_batchnorm(traced: fx.GraphModule) -> int:
    """Folds each BatchNorm into the convolution that directly precedes it, in place.

    Left alone: a convolution whose output is also used elsewhere, and modules called more than once.

    Returns:
        Number of BatchNorms folded.
    """
    calls = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
    folded = 0
    for node in list(traced.graph.nodes):
        pair = _foldable(traced, node, calls)
        if pair is None:
            continue
        before, convolution, norm = pair
        parent, _, child = str(before.target).rpartition(".")
        with torch.no_grad():
            fused = fuse_conv_bn_eval(convolution, norm)
        traced.get_submodule(parent).add_module(child, fused)
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
        folded += 1
    traced.delete_all_unused_submodules()
    traced.recompile()
    return folded


def _foldable(traced: fx.GraphModule, node: fx.Node, calls: Counter[str]) -> tuple[fx.Node, _ConvNd, _BatchNorm] | None:
    if node.op != "call_module" or calls[str(node.target)] != 1:
        return None
    norm = traced.get_submodule(str(node.target))
    before = node.args[0] if node.args else None
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or not isinstance(before, fx.Node):
        return None
    if before.op != "call_module" or len(before.users) != 1 or calls[str(before.target)] != 1:
        return None
    convolution = traced.get_submodule(str(before.target))
    if not isinstance(convolution, _ConvNd) or convolution.transposed:
        return None
    return before, convolution, norm
