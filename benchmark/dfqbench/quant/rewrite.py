"""The rewriter: puts quantizers into a copy of a network, as a scheme asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from dfqbench.api.errors import Unavailable
from dfqbench.quant.activations import FUNCTIONS, METHODS, is_activation
from dfqbench.quant.fold import fold_batchnorm, unfuse_norm_activations
from dfqbench.quant.probe import Probe, probe
from dfqbench.quant.quantizers import ActivationQuantizer, QuantizedActivation, WeightQuantizer
from dfqbench.quant.scheme import OFF, Scheme
from dfqbench.quant.trace import WEIGHTED, is_hooked, trace

QUANTIZERS = "activation_quantizers"
"""Name under which the graph's activation quantizers are kept."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One operand that the scheme says is on a grid.

    Attributes:
        kind: `weight` (name: the layer's) or `activation` (name: the quantizer's).
        name: dotted name.
        bits: width of the grid.
    """

    kind: Literal["weight", "activation"]
    name: str
    bits: int


@dataclass(frozen=True, slots=True)
class LayerBits:
    """Claimed widths of one convolution or linear layer; 32 where nothing is claimed."""

    weight: int
    input: int


def rewrite(network: nn.Module, scheme: Scheme, example: Tensor) -> tuple[fx.GraphModule, list[Claim]]:
    """Rewrites a network in place into one whose claimed operands are on grids.

    Args:
        network: in eval mode; the caller's own copy.
        scheme: what to quantize and how.
        example: (N, C, H, W), any values; one forward pass finds the order of the layers.

    Returns:
        The traced network and what it claims to quantize.

    Raises:
        Unavailable: the network has no activation function under a protocol that quantizes their outputs, or one that
            cannot be reached.
    """
    unfuse_norm_activations(network)
    traced = trace(network)
    if scheme.protocol.fold_batchnorm:
        fold_batchnorm(traced)
    found = probe(traced, example)
    traced.add_module(QUANTIZERS, nn.ModuleDict())
    bits = layer_bits(found, scheme)
    claims = _quantize_weights(traced, scheme, bits)
    if scheme.protocol.placement == "activation_output":
        claims += _quantize_activation_outputs(traced, scheme, found)
    else:
        claims += _quantize_layer_inputs(traced, scheme, bits)
    claims += _quantize_network_input(traced, scheme)
    traced.graph.lint()
    traced.recompile()
    return traced, claims


def layer_bits(found: Probe, scheme: Scheme) -> dict[str, LayerBits]:
    """Claimed widths of every layer, in the order in which a forward pass calls them."""
    protocol = scheme.protocol
    inputs_claimed = protocol.placement == "layer_input"
    result = {}
    for index, name in enumerate(found.layers):
        ends = [protocol.first_bits] if index == 0 else []
        ends += [protocol.last_bits] if index == len(found.layers) - 1 else []
        end = next((bits for bits in ends if bits is not None), None)
        weight = scheme.w_bits if end is None or scheme.w_bits == OFF else end
        taken = scheme.a_bits if end is None or scheme.a_bits == OFF else end
        override = scheme.overridden(name)
        if override is not None:
            weight = override.w_bits or weight
            taken = override.a_bits or taken
        result[name] = LayerBits(weight, taken if inputs_claimed else OFF)
    return result


def _quantize_weights(traced: fx.GraphModule, scheme: Scheme, bits: dict[str, LayerBits]) -> list[Claim]:
    claims = []
    for name, module in list(traced.named_modules()):
        if isinstance(module, WEIGHTED) and name in bits and bits[name].weight != OFF:
            quantizer = WeightQuantizer(scheme.protocol.weights, bits[name].weight)
            # unsafe: the check would run a forward and backward of the quantizer for nothing.
            parametrize.register_parametrization(module, "weight", quantizer, unsafe=True)
            claims.append(Claim("weight", name, bits[name].weight))
    return claims


def _quantize_activation_outputs(traced: fx.GraphModule, scheme: Scheme, found: Probe) -> list[Claim]:
    if not found.activations:
        raise Unavailable(
            f"the network has no activation function that protocol '{scheme.protocol.name}' could quantize",
            "use a protocol that quantizes layer inputs, for example deploy",
        )
    if found.unreachable:
        raise Unavailable(
            f"activation functions in an untraceable part cannot be reached: {', '.join(found.unreachable)}",
            "write them as modules in the network, or use protocol deploy",
        )
    claims = []
    for node in list(traced.graph.nodes):
        if not _calls_activation(traced, node):
            continue
        name = _place(node)
        bits = _activation_bits(scheme, name)
        if bits != OFF:
            quantizer = ActivationQuantizer(f"{name}#{node.name}", scheme.protocol.activations, bits)
            claims.append(_insert_after(traced, node, quantizer, users=list(node.users)))
            producer = _rectified_by(traced, node)
            if producer is not None and scheme.protocol.activations.rounding == "integral_shift":
                # Its quantizer does ReLU's work, which then costs no pass of its own.
                (inserted,) = node.users
                inserted.replace_input_with(node, producer)
                traced.graph.erase_node(node)
                quantizer.rectifies = True
                quantizer.refresh()
    for name, calls in found.inner_activations.items():
        bits = _activation_bits(scheme, name)
        if bits != OFF:
            claims += _wrap_inner(traced, scheme, name, calls, bits)
    return claims


def _quantize_layer_inputs(traced: fx.GraphModule, scheme: Scheme, bits: dict[str, LayerBits]) -> list[Claim]:
    claims = []
    called = set()
    # One tensor feeds several layers where a block has a shortcut: they share a quantizer of equal width.
    wanted: dict[tuple[fx.Node, int], list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module" and str(node.target) in bits:
            called.add(str(node.target))
            producer = node.args[0]
            width = bits[str(node.target)].input
            if isinstance(producer, fx.Node) and width != OFF and not _is_quantized_image(producer, scheme):
                wanted.setdefault((producer, width), []).append(node)
    for (producer, width), users in wanted.items():
        name = f"{users[0].target}.input"
        quantizer = ActivationQuantizer(name, scheme.protocol.activations, width)
        claims.append(_insert_after(traced, producer, quantizer, users=users))
    for name in bits.keys() - called:
        if bits[name].input != OFF:
            quantizer = ActivationQuantizer(f"{name}.input", scheme.protocol.activations, bits[name].input)
            layer = traced.get_submodule(name)
            layer.add_module("input_quantizer", quantizer)
            layer.register_forward_pre_hook(_quantize_first_argument)
            claims.append(Claim("activation", quantizer.name, quantizer.bits))
    return claims


def _quantize_first_argument(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (layer.get_submodule("input_quantizer")(args[0]), *args[1:])


def _quantize_network_input(traced: fx.GraphModule, scheme: Scheme) -> list[Claim]:
    bits = scheme.protocol.input_bits
    if OFF in {bits, scheme.a_bits}:
        return []
    image = next(node for node in traced.graph.nodes if node.op == "placeholder")
    quantizer = ActivationQuantizer("input", scheme.protocol.activations, bits)
    return [_insert_after(traced, image, quantizer, users=list(image.users))]


def _is_quantized_image(producer: fx.Node, scheme: Scheme) -> bool:
    return producer.op == "placeholder" and scheme.protocol.input_bits != OFF


def _activation_bits(scheme: Scheme, name: str) -> int:
    override = scheme.overridden(name)
    return scheme.a_bits if override is None or override.a_bits is None else override.a_bits


def _calls_activation(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return is_activation(traced.get_submodule(str(node.target)))
    if node.op == "call_function":
        return node.target in FUNCTIONS
    return node.op == "call_method" and node.target in METHODS


def _rectified_by(traced: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """What a node takes if it is a ReLU that nobody would miss, else None."""
    producer = node.args[0] if len(node.args) == 1 else None
    if not isinstance(producer, fx.Node):
        return None
    in_place = bool(node.kwargs.get("inplace", False))
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        # A subclass may do more, and a hook would miss its call.
        plain = type(module) is nn.ReLU and not is_hooked(module)
        in_place = plain and bool(module.inplace)
    else:
        plain = node.target in {torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"}
        in_place = in_place or node.target in {torch.relu_, F.relu_, "relu_"}
    # Others would see what an operation in place has changed.
    return producer if plain and not (in_place and len(producer.users) > 1) else None


def _place(node: fx.Node) -> str:
    """Dotted name of the module in which a node computes; the activation's own where it is a module."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    names = [entry[0] if isinstance(entry, tuple) else str(entry) for entry in stack.values()]
    return names[-1] if names and names[-1] else "network"


def _insert_after(
    traced: fx.GraphModule, producer: fx.Node, quantizer: ActivationQuantizer, users: list[fx.Node]
) -> Claim:
    holder = traced.get_submodule(QUANTIZERS)
    key = f"q{len(list(holder.children()))}"
    holder.add_module(key, quantizer)
    with traced.graph.inserting_after(producer):
        inserted = traced.graph.call_module(f"{QUANTIZERS}.{key}", (producer,))
    for user in users:
        user.replace_input_with(producer, inserted)
    return Claim("activation", quantizer.name, quantizer.bits)


def _wrap_inner(traced: fx.GraphModule, scheme: Scheme, name: str, calls: int, bits: int) -> list[Claim]:
    operand = scheme.protocol.activations
    quantizers = [ActivationQuantizer(f"{name}#call{index}", operand, bits) for index in range(calls)]
    parent, _, child = name.rpartition(".")
    traced.get_submodule(parent).add_module(child, QuantizedActivation(traced.get_submodule(name), quantizers))
    return [Claim("activation", quantizer.name, bits) for quantizer in quantizers]
