"""The rewriter: inserts the fake quantization of a scheme into a copy of a network."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from dfqbench.api.errors import Unavailable
from dfqbench.quant.activations import FUNCTIONS, METHODS, is_activation
from dfqbench.quant.batch_norm import fold_batchnorm, fuse_batch_norm_act, unfuse_norm_activations
from dfqbench.quant.fake_quantize_modules import FakeQuantize, FakeQuantizedActivation, FakeQuantizeWeight
from dfqbench.quant.integer_conv import QuantizedConv2d
from dfqbench.quant.scheme import OFF, Placement, Scheme
from dfqbench.quant.trace import WEIGHTED, Probe, called_module, has_hooks, probe, trace

QUANTIZERS = "activation_quantizers"
"""Name of the submodule for the graph's `FakeQuantize` modules."""


@dataclass(frozen=True, slots=True)
class QuantizedOperand:
    """One operand that the scheme quantizes.

    Attributes:
        role: `weight` or `activation`.
        name: dotted name of the layer, or name of the activation's `FakeQuantize`.
        bits: bit-width.
    """

    role: Literal["weight", "activation"]
    name: str
    bits: int


class LayerBits(NamedTuple):
    """Bit-widths of a convolution or linear layer by the scheme; 32: left in float."""

    weight: int
    input: int


def rewrite(
    network: nn.Module, scheme: Scheme, example: Tensor
) -> tuple[fx.GraphModule, list[QuantizedOperand], dict[str, LayerBits]]:
    """Insert fake quantization into a network, in place.

    Args:
        network: in eval mode; the caller's own copy.
        scheme: what to quantize and how.
        example: (N, C, H, W), any values; forward passes find the order of the layers and shapes.

    Returns:
        The traced network, its quantized operands, and the bit-widths of each layer, in order of execution.

    Raises:
        Unavailable: the network has no activation function under a protocol that quantizes their outputs, or one that
            cannot be reached.
    """
    unfuse_norm_activations(network)
    traced = trace(network)
    _pool_strided_slices(traced)
    if scheme.protocol.fold_batchnorm:
        fold_batchnorm(traced)
    calls = probe(traced, example)
    traced.add_module(QUANTIZERS, nn.ModuleDict())
    bits = layer_bits(traced, calls, scheme)
    operands = _quantize_weights(traced, scheme, bits)
    if scheme.protocol.placement is Placement.ACTIVATION_OUTPUT:
        operands += _quantize_activation_outputs(traced, scheme, calls)
    else:
        operands += _quantize_layer_inputs(traced, scheme, bits)
    operands += _quantize_network_input(traced, scheme)
    _link_integer_convolutions(traced)
    fuse_batch_norm_act(traced, example)
    return traced, operands, bits


def _pool_strided_slices(traced: fx.GraphModule) -> None:
    """Replace `F.pad(x[:, :, ::s, ::s], ...)`, the shortcut of CIFAR ResNets, by a padded pooling of one value.

    The values are equal, and the gradient keeps the memory order of x, like that of the other branch.
    """
    for node in list(traced.graph.nodes):
        readers = list(node.users)
        step = _stride_of_slice(node)
        if step is not None and len(readers) == 1 and readers[0].target is F.pad:
            # Before the padding, since a slice shows later writes to x.
            with traced.graph.inserting_before(readers[0]):
                pooled = traced.graph.call_function(F.max_pool2d, (node.args[0], 1, step))
            node.replace_all_uses_with(pooled)
            traced.graph.erase_node(node)
    traced.recompile()


def _stride_of_slice(node: fx.Node) -> int | None:
    """Return s of a slice [:, :, ::s, ::s], or None for another node."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    index: Any = node.args[1]
    step = index[-1].step if isinstance(index, tuple) and len(index) == 4 and isinstance(index[-1], slice) else None
    whole, strided = slice(None), slice(None, None, step)
    return step if isinstance(step, int) and step > 0 and index == (whole, whole, strided, strided) else None


def layer_bits(traced: fx.GraphModule, calls: Probe, scheme: Scheme) -> dict[str, LayerBits]:
    """Return the scheme's bit-widths of every layer, in the order of the layers' first calls."""
    protocol = scheme.protocol
    quantizes_inputs = protocol.placement is Placement.LAYER_INPUT
    # The tensor that each layer of the graph reads, at its first call.
    calling = [node for node in reversed(traced.graph.nodes) if node.op == "call_module" and node.args]
    tensors: dict[str, Any] = {str(node.target): node.args[0] for node in calling}
    image = next(node for node in traced.graph.nodes if node.op == "placeholder")
    second, last = calls.layers[1:2], calls.layers[-1:]
    beside_second = [name for name in tensors if any(tensors[name] is tensors.get(layer) for layer in second)]
    result = {}
    for index, name in enumerate(calls.layers):
        end = protocol.first_bits if index == 0 else None
        if end is None and name in last:
            end = protocol.last_bits
        weight = scheme.w_bits if end is None or scheme.w_bits == OFF else end
        inputs = scheme.a_bits
        if inputs != OFF:
            inputs = end or inputs
            if name in (*second, *beside_second):
                inputs = protocol.second_input_bits or inputs
            if name in last:
                inputs = protocol.last_input_bits or inputs
            if tensors.get(name) is image or (index == 0 and protocol.input_bits == OFF):
                inputs = protocol.input_bits
        override = scheme.overridden(name)
        if override is not None:
            weight = override.w_bits or weight
            inputs = override.a_bits or inputs
        result[name] = LayerBits(weight, inputs if quantizes_inputs else OFF)
    return result


def _quantize_weights(traced: fx.GraphModule, scheme: Scheme, bits: dict[str, LayerBits]) -> list[QuantizedOperand]:
    operands = []
    # A layer with further names in an untraced part cannot be replaced under one of them.
    names = Counter(id(module) for _, module in traced.named_modules(remove_duplicate=False))
    for name, module in list(traced.named_modules()):
        if isinstance(module, WEIGHTED) and name in bits and bits[name].weight != OFF:
            quantizer = FakeQuantizeWeight(scheme.protocol.weights, bits[name].weight)
            layer = module
            replaceable = names[id(module)] == 1 and not has_hooks(module)
            if replaceable and type(module) is nn.Conv2d and module.padding_mode == "zeros":
                layer = QuantizedConv2d.from_float(module)
                traced.set_submodule(name, layer)
            # unsafe=True omits a check that runs the quantizer forward and backward.
            parametrize.register_parametrization(layer, "weight", quantizer, unsafe=True)
            operands.append(QuantizedOperand("weight", name, bits[name].weight))
    return operands


def _quantize_activation_outputs(traced: fx.GraphModule, scheme: Scheme, calls: Probe) -> list[QuantizedOperand]:
    if not calls.activations:
        raise Unavailable(
            f"the network has no activation function that protocol '{scheme.protocol.name}' could quantize",
            "use a protocol that quantizes layer inputs, for example deploy",
        )
    if calls.unreachable:
        raise Unavailable(
            f"activation functions in an untraceable part cannot be reached: {', '.join(calls.unreachable)}",
            "write them as modules in the network, or use protocol deploy",
        )
    operands = []
    for node in list(traced.graph.nodes):
        if not _calls_activation(traced, node):
            continue
        name = _module_name(node)
        bits = _activation_bits(scheme, name)
        if bits != OFF:
            quantizer = FakeQuantize(f"{name}#{node.name}", scheme.protocol.activations, bits)
            operands.append(_insert_after(traced, node, quantizer, users=list(node.users)))
    for name, count in calls.inner_activations.items():
        bits = _activation_bits(scheme, name)
        if bits == OFF:
            continue
        quantizers = [FakeQuantize(f"{name}#call{i}", scheme.protocol.activations, bits) for i in range(count)]
        parent, _, child = name.rpartition(".")
        traced.get_submodule(parent).add_module(child, FakeQuantizedActivation(traced.get_submodule(name), quantizers))
        operands += [QuantizedOperand("activation", quantizer.name, bits) for quantizer in quantizers]
    return operands


def _quantize_layer_inputs(
    traced: fx.GraphModule, scheme: Scheme, bits: dict[str, LayerBits]
) -> list[QuantizedOperand]:
    operands = []
    called = set()
    # Layers of equal width that read one tensor, as beside a shortcut, share a quantizer.
    readers: dict[tuple[fx.Node, int], list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module" and str(node.target) in bits:
            called.add(str(node.target))
            producer = node.args[0]
            width = bits[str(node.target)].input
            if not isinstance(producer, fx.Node) or width == OFF:
                continue
            if producer.op != "placeholder" or width != scheme.protocol.input_bits:
                readers.setdefault((producer, width), []).append(node)
    if scheme.protocol.quantize_identity:
        _add_other_readers(readers)
    for (producer, width), users in readers.items():
        name = f"{users[0].target}.input"
        quantizer = FakeQuantize(name, scheme.protocol.activations, width)
        operands.append(_insert_after(traced, producer, quantizer, users=users))
    for name in bits.keys() - called:
        if bits[name].input != OFF:
            quantizer = FakeQuantize(f"{name}.input", scheme.protocol.activations, bits[name].input)
            layer = traced.get_submodule(name)
            layer.add_module("input_quantizer", quantizer)
            layer.register_forward_pre_hook(_quantize_first_argument)
            operands.append(QuantizedOperand("activation", quantizer.name, quantizer.bits))
    return operands


def _add_other_readers(readers: dict[tuple[fx.Node, int], list[fx.Node]]) -> None:
    """Let whatever else reads a layer's input read it quantized, at the largest width of its layers."""
    for producer in dict.fromkeys(producer for producer, _ in readers):
        groups = {width: users for (node, width), users in readers.items() if node is producer}
        layers = [user for users in groups.values() for user in users]
        groups[max(groups)] += [user for user in producer.users if user not in layers]


def _quantize_first_argument(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (layer.get_submodule("input_quantizer")(args[0]), *args[1:])


def _quantize_network_input(traced: fx.GraphModule, scheme: Scheme) -> list[QuantizedOperand]:
    bits = scheme.protocol.input_bits
    if OFF in {bits, scheme.a_bits}:
        return []
    image = next(node for node in traced.graph.nodes if node.op == "placeholder")
    quantizer = FakeQuantize("input", scheme.protocol.activations, bits)
    return [_insert_after(traced, image, quantizer, users=list(image.users))]


def _link_integer_convolutions(traced: fx.GraphModule) -> None:
    """Link each convolution that is called once to the `FakeQuantize` of its input."""
    calls: dict[str, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if isinstance(called_module(traced, node), QuantizedConv2d):
            calls.setdefault(str(node.target), []).append(node)
    for name, nodes in calls.items():
        conv, quantizer = traced.get_submodule(name), called_module(traced, nodes[0].args[0])
        if len(nodes) == 1 and isinstance(conv, QuantizedConv2d) and isinstance(quantizer, FakeQuantize):
            conv.feed_from(quantizer)


def _activation_bits(scheme: Scheme, name: str) -> int:
    override = scheme.overridden(name)
    return scheme.a_bits if override is None or override.a_bits is None else override.a_bits


def _calls_activation(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return is_activation(traced.get_submodule(str(node.target)))
    if node.op == "call_function":
        return node.target in FUNCTIONS
    return node.op == "call_method" and node.target in METHODS


def _module_name(node: fx.Node) -> str:
    """Return the dotted name of the module that a node calls, or in which it computes."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    names = [entry[0] if isinstance(entry, tuple) else str(entry) for entry in stack.values()]
    return names[-1] if names and names[-1] else "network"


def _insert_after(
    traced: fx.GraphModule, producer: fx.Node, quantizer: FakeQuantize, users: list[fx.Node]
) -> QuantizedOperand:
    holder = traced.get_submodule(QUANTIZERS)
    key = f"q{len(list(holder.children()))}"
    holder.add_module(key, quantizer)
    with traced.graph.inserting_after(producer):
        inserted = traced.graph.call_module(f"{QUANTIZERS}.{key}", (producer,))
    for user in users:
        user.replace_input_with(producer, inserted)
    return QuantizedOperand("activation", quantizer.name, quantizer.bits)
