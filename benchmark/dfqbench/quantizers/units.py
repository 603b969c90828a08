"""Units of block reconstruction: the parts of a network that one tensor enters and one tensor leaves."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils import parametrize

from dfqbench.api.errors import Unavailable
from dfqbench.quant import FakeQuantize, Student
from dfqbench.quant.activations import FUNCTIONS, METHODS, is_activation
from dfqbench.quant.scheme import Placement
from dfqbench.quant.trace import WEIGHTED, BatchNorm, node_module

_ADDITIONS: frozenset[Any] = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of the student and the same part of the teacher; both map one tensor to one tensor.

    Attributes:
        name: first and last layer.
        student: shares its modules with the student.
        teacher: the part in float.
    """

    name: str
    student: fx.GraphModule
    teacher: fx.GraphModule


def split(student: Student, example: Tensor) -> list[Unit]:
    """Split a student into units, in the order of its graph.

    A unit is the smallest part with a convolution or linear layer whose input and output are single tensors: a residual
    block, or one layer with the normalization and activation after it. A part that cannot be traced is one unit or
    belongs to one. The fake quantization of activation outputs belongs to the unit before, that of layer inputs to the
    unit after.

    Args:
        student: as it was prepared, so that without quantization it is the teacher.
        example: (N, C, H, W), any values, for a forward pass that finds the shapes.

    Raises:
        Unavailable: no layer has a weight, one is called more than once in a pass, or shares its weight with another.
    """
    network = student.network
    if not isinstance(network, fx.GraphModule):
        raise TypeError("the student has no graph")
    _check_layers(student, example)
    with torch.no_grad():
        ShapeProp(network).propagate(example)
    nodes = list(network.graph.nodes)
    nodes = nodes[: nodes.index(nodes[-1].args[0]) + 1]  # up to the logits
    start = next(index for index, node in enumerate(nodes) if node.op == "placeholder")
    teacher = _in_float(network)
    result = []
    for end in _unit_ends(network, nodes, student.scheme.protocol.placement):
        edges = nodes[start].name, nodes[end].name
        name = _name(network, nodes[start + 1 : end + 1])
        result.append(Unit(name, _part(network, *edges), _part(teacher, *edges)))
        start = end
    return result


def _check_layers(student: Student, example: Tensor) -> None:
    calls = Counter[str]()
    layers = {name: module for name, module in student.network.named_modules() if isinstance(module, WEIGHTED)}
    hooks = [
        module.register_forward_pre_hook(lambda _m, _args, name=name: calls.update([name]))
        for name, module in layers.items()
    ]
    try:
        with torch.no_grad():
            student.network(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not calls:
        raise Unavailable("the network has no convolution or linear layer to reconstruct", "use another quantizer")
    weights = Counter(id(parameter) for module in layers.values() for parameter in _weights(module))
    repeated = [name for name, count in calls.items() if count > 1]
    repeated += [name for name, module in layers.items() if any(weights[id(p)] > 1 for p in _weights(module))]
    if repeated:
        raise Unavailable(
            f"reconstruct cannot learn a layer that is used twice: {', '.join(repeated)}", "use another quantizer"
        )


def _weights(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in module.named_parameters() if not name.endswith("bias")]


def _unit_ends(network: fx.GraphModule, nodes: list[fx.Node], placement: Placement) -> list[int]:
    """Return the index of each unit's last node.

    Layers without weight after a unit's last norm, activation, sum or quantized output (pooling, say) begin the next.
    """
    ends: list[int] = []
    last, has_layer = 0, False
    start = 0
    for end in _cut_points(nodes):
        part = nodes[start : end + 1]
        start = end + 1
        weighted = any(_has_layer(network, node) for node in part)
        if weighted and has_layer:
            ends.append(last)
        has_layer = has_layer or weighted
        if weighted or any(_closes(network, node, placement) for node in part):
            last = end
    return [*ends, len(nodes) - 1]


def _cut_points(nodes: list[fx.Node]) -> list[int]:
    """Return the nodes with a tensor that all later nodes depend on alone, the last node among them."""
    order = {node: index for index, node in enumerate(nodes)}
    cuts, reach = [], -1
    for index, node in enumerate(nodes):
        if node.op == "get_attr":
            continue
        meta: Any = node.meta.get("tensor_meta")
        if reach <= index and hasattr(meta, "shape"):
            cuts.append(index)
        reach = max(reach, *(order.get(user, len(nodes)) for user in node.users), index)
    return cuts


def _in_float(network: fx.GraphModule) -> fx.GraphModule:
    """Return a copy without fake quantization, with the same graph."""
    result = copy.deepcopy(network)
    for name, module in list(result.named_modules()):
        if isinstance(module, FakeQuantize):
            result.set_submodule(name, nn.Identity())
        elif isinstance(module, parametrize.ParametrizationList):
            module[0] = nn.Identity()
    return result


def _part(network: fx.GraphModule, start: str, end: str) -> fx.GraphModule:
    """Return the part of a network from the value of node `start` to that of `end`; it shares the network's modules."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    inside = False
    for node in network.graph.nodes:
        if node.name == start:
            copies[node] = graph.placeholder("x")
            inside = True
        elif inside or node.op == "get_attr":
            copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.name == end:
            graph.output(copies[node])
            break
    return fx.GraphModule(network, graph)


def _layers(network: fx.GraphModule, node: fx.Node) -> list[str]:
    """Return the dotted names of the layers with weights that a node calls."""
    module = node_module(network, node)
    names = [] if module is None else [name for name, part in module.named_modules() if isinstance(part, WEIGHTED)]
    return [f"{node.target}.{name}" if name else str(node.target) for name in names]


def _has_layer(network: fx.GraphModule, node: fx.Node) -> bool:
    return bool(_layers(network, node))


def _closes(network: fx.GraphModule, node: fx.Node, placement: Placement) -> bool:
    """Check that a node belongs to the unit of the layer before it."""
    module = node_module(network, node)
    if isinstance(module, FakeQuantize):
        return placement is Placement.ACTIVATION_OUTPUT
    if module is not None:
        return isinstance(module, BatchNorm) or is_activation(module)
    return node.target in _ADDITIONS or node.target in FUNCTIONS or node.target in METHODS


def _name(network: fx.GraphModule, nodes: list[fx.Node]) -> str:
    names = [name for node in nodes for name in _layers(network, node)]
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
