"""Feature alignment: the attention of the student's residual blocks as the teacher's (HAST, SynQ)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from dfqbench.api.errors import Unavailable
from dfqbench.quant.batch_norm import ADDITIONS
from dfqbench.quant.trace import WEIGHTED, BatchNorm, node_module
from dfqbench.synth.attention import NORMALISER_EPS, attention_map


def alignment_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """mean_np (A_P - A_Q)^2, A the mean of squares over channels, divided by its Euclidean norm over positions p.

    Args:
        teacher: features (N, C, H, W) of P.
        student: the same of Q.
    """
    return F.mse_loss(_attention(student), _attention(teacher))


def _attention(features: Tensor) -> Tensor:
    return F.normalize(attention_map(features).flatten(1), eps=NORMALISER_EPS)


def map_sizes(graph: fx.GraphModule, example: Tensor) -> dict[str, int]:
    """Return the positions H W of each convolution's output by the convolution's name, in order of execution.

    Args:
        graph: a traced network.
        example: (N, C, H, W), any values.
    """
    with torch.no_grad():
        ShapeProp(graph).propagate(example)
    sizes = {}
    for node in graph.graph.nodes:
        shape: Any = getattr(node.meta.get("tensor_meta"), "shape", ())
        if isinstance(node_module(graph, node), nn.Conv2d) and len(shape) == 4:
            sizes[str(node.target)] = shape[2] * shape[3]
    return sizes


def block_ends(graph: fx.GraphModule, sizes: dict[str, int]) -> list[str]:
    """Return the names of the convolutions whose outputs are aligned, in order of execution.

    They are the last ones of each residual branch, before the sum, and the pointwise ones after a depthwise one (the
    released code's ResUnit, LinearBottleneck and DwsConv), where the output has more than one position.

    Args:
        graph: a traced network.
        sizes: see `map_sizes`.

    Raises:
        Unavailable: there is none.
    """
    depths = _depths(graph)
    ends = {_layer_before(graph, _branch(node, depths)) for node in graph.graph.nodes if node.target in ADDITIONS}
    ends |= {name for name in sizes if _is_pointwise_after_depthwise(graph, name)}
    if not ends - {None}:
        raise Unavailable(
            "feature alignment needs residual or depthwise-separable blocks, which the network does not have",
            "choose another recipe, or --set distill.feature_weight=0",
        )
    calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    kept = [name for name, size in sizes.items() if name in ends and size > 1 and calls[name] == 1]
    if not kept:
        raise Unavailable(
            "feature alignment: the attention map of each block has a single position, which is always 1",
            "choose another recipe, or --set distill.feature_weight=0",
        )
    return kept


def _branch(addition: fx.Node, depths: dict[fx.Node, int]) -> fx.Node | None:
    """Return the summand behind the larger number of layers: the branch, not its shortcut."""
    summands = addition.all_input_nodes
    return max(summands, key=depths.__getitem__) if len(summands) == 2 else None


def _depths(graph: fx.GraphModule) -> dict[fx.Node, int]:
    """Return the largest number of layers with weights on a path to each node."""
    depths: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        before = max((depths[source] for source in node.all_input_nodes), default=0)
        depths[node] = before + isinstance(node_module(graph, node), WEIGHTED)
    return depths


def _layer_before(graph: fx.GraphModule, node: fx.Node | None) -> str | None:
    """Return the convolution whose output a node passes on through BatchNorm, if anything; None: there is none."""
    while node is not None and node.op == "call_module" and len(node.all_input_nodes) == 1:
        module = node_module(graph, node)
        if isinstance(module, nn.Conv2d):
            return str(node.target)
        if not isinstance(module, (BatchNorm, nn.Identity, nn.Dropout)):
            return None
        node = node.all_input_nodes[0]
    return None


def _is_pointwise_after_depthwise(graph: fx.GraphModule, name: str) -> bool:
    layer = graph.get_submodule(name)
    node = next(node for node in graph.graph.nodes if node.target == name)
    if not isinstance(layer, nn.Conv2d) or max(layer.kernel_size) > 1 or layer.groups > 1:
        return False
    while len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
        before = node_module(graph, node)
        if isinstance(before, WEIGHTED):
            return isinstance(before, nn.Conv2d) and before.groups == before.in_channels > 1
    return False
