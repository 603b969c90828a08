"""Mixed precision: how much each layer's width costs, and a scheme whose layers meet a budget (ZeroQ, CVPR 2020)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api.card import ModelCard
from dfqbench.api.errors import Invalid, NonFiniteError
from dfqbench.quant.coverage import expected_bits
from dfqbench.quant.mixed import Mixed
from dfqbench.quant.scheme import OFF, Protocol, Scheme
from dfqbench.quant.student import Student, float_weight, prepare
from dfqbench.quantizers.bit_planner import Layer, plan_bits


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """What rounding the weights of one layer alone does to a network's answers.

    Attributes:
        name: dotted name.
        weights: number of weights.
        macs: multiply-accumulates for one image.
        omega: divergence of the answers by width, 0 or more.
    """

    name: str
    weights: int
    macs: int
    omega: Mapping[int, float]


@torch.no_grad()
def measure_sensitivity(
    teacher: nn.Module,
    images: Tensor,
    protocol: Protocol,
    card: ModelCard,
    *,
    bits: Sequence[int] = (2, 4, 8),
    divergence: str = "symmetric",
) -> list[LayerSensitivity]:
    """Round one layer at a time, with activations and all other layers in float, and compare the answers.

    First and last layer are measured at the same widths, whatever the protocol gives them.

    Args:
        teacher: in eval mode; left as it is.
        images: (N, C, H, W) in normalised input space, on the teacher's device.
        protocol: how weights are rounded, and whether BatchNorm is folded before.
        card: the teacher's card.
        bits: widths.
        divergence: `symmetric` or `plain`; see `Mixed`.

    Returns:
        The layers in order of execution.

    Raises:
        NonFiniteError: a divergence is NaN or infinite.
    """
    images = images.to(memory_format=torch.channels_last)
    weights_only = dataclasses.replace(protocol, first_bits=None, last_bits=None, overrides=())
    network = prepare(teacher, Scheme(OFF, OFF, weights_only), card)
    rounded = {width: prepare(teacher, Scheme(width, OFF, weights_only), card).network for width in bits}
    macs = layer_macs(network, images[:1])
    answers = network(images).double().log_softmax(1)
    sensitivities = []
    for name in network.layers:
        weight = float_weight(network.network.get_submodule(name))
        in_float, omega = weight.clone(), {}
        for width in bits:
            weight.copy_(rounded[width].get_submodule(name).weight)  # type: ignore[arg-type]
            omega[width] = _divergence(answers, network(images).double().log_softmax(1), divergence)
            if not omega[width] < float("inf"):
                raise NonFiniteError(f"the divergence of {name} at {width} bits")
        weight.copy_(in_float)
        sensitivities.append(LayerSensitivity(name, weight.numel(), macs[name], omega))
    return sensitivities


def _divergence(p: Tensor, q: Tensor, divergence: str) -> float:
    """Return KL(p, q) or its mean with KL(q, p) of log-probabilities (N, classes), mean over the images."""
    value = F.kl_div(q, p, log_target=True, reduction="batchmean")
    if divergence == "symmetric":
        value = (value + F.kl_div(p, q, log_target=True, reduction="batchmean")) / 2
    # Below zero by rounding only.
    return float(value.clamp_min(0.0))


@torch.no_grad()
def layer_macs(student: Student, image: Tensor) -> dict[str, int]:
    """Return the multiply-accumulates of each layer for one image (1, C, H, W), by name."""
    macs = dict.fromkeys(student.layers, 0)

    def count(name: str, layer: nn.Module, output: Tensor) -> None:
        # Each output element takes as many products as one output channel has weights.
        macs[name] += output.numel() * float_weight(layer)[0].numel()

    hooks = [
        student.network.get_submodule(name).register_forward_hook(
            lambda layer, _args, output, name=name: count(name, layer, output)
        )
        for name in macs
    ]
    seen = student.images_seen
    try:
        student(image)
    finally:
        for hook in hooks:
            hook.remove()
    student.images_seen = seen
    return macs


def plan_scheme(teacher: nn.Module, images: Tensor, scheme: Scheme, card: ModelCard) -> Scheme:
    """Return a scheme of mixed precision with a width for each layer that the protocol leaves open.

    Args:
        teacher: in eval mode; left as it is.
        images: (N, C, H, W) in normalised input space, on the teacher's device.
        scheme: with a budget.
        card: the teacher's card.

    Raises:
        Unavailable: the least widths exceed the budget.
        NonFiniteError: a divergence is NaN or infinite.
    """
    mixed = _budget(scheme)
    uniform = [
        prepare(teacher, dataclasses.replace(scheme, w_bits=width, mixed=None), card)
        for width in (min(mixed.bits), max(mixed.bits))
    ]
    narrow, wide = (student.layers for student in uniform)
    fixed = {name: bits.weight for name, bits in narrow.items() if bits.weight == wide[name].weight}
    costs = _costs(uniform[0], mixed, images[:1])
    measured = measure_sensitivity(teacher, images, scheme.protocol, card, bits=mixed.bits, divergence=mixed.divergence)
    layers = [Layer(layer.name, costs[layer.name], layer.omega) for layer in measured if layer.name not in fixed]
    return scheme.with_layers(plan_bits(layers, _most(costs, fixed, mixed)))


def check_planned(student: Student, scheme: Scheme, image: Tensor) -> None:
    """Check that the widths of a student's layers meet the budget of its cell's scheme.

    Args:
        student: the finished student.
        scheme: the cell's, without widths of layers.
        image: (1, C, H, W), any values.

    Raises:
        Invalid: they do not, or something else of the scheme differs.
    """
    mixed = _budget(scheme)
    chosen = student.scheme.protocol.overrides[len(scheme.protocol.overrides) :]
    widths = {name: bits.weight for name, bits in student.layers.items() if student.scheme.overridden(name) in chosen}
    if scheme.with_layers(widths) != student.scheme or not set(mixed.bits).issuperset(widths.values()):
        raise Invalid(f"the saved student's layers are not those of {scheme.label}")
    costs = _costs(student, mixed, image)
    fixed = {name: bits.weight for name, bits in student.layers.items() if name not in widths}
    if sum(costs[name] * width for name, width in widths.items()) > _most(costs, fixed, mixed):
        raise Invalid(f"the saved student's layers exceed the budget {mixed.budget}")


def _budget(scheme: Scheme) -> Mixed:
    if scheme.mixed is None:
        raise ValueError(f"{scheme.label} has no budget")
    return scheme.mixed


def _costs(student: Student, mixed: Mixed, image: Tensor) -> dict[str, int]:
    """Return the cost of one bit of each layer: its weights, or multiply-accumulates times bits of their input."""
    if mixed.counts_operations:
        return {name: macs * expected_bits(student, name)[1] for name, macs in layer_macs(student, image).items()}
    return {name: float_weight(student.network.get_submodule(name)).numel() for name in student.layers}


def _most(costs: Mapping[str, int], fixed: Mapping[str, int], mixed: Mixed) -> float:
    """Return what layers may cost besides those whose widths are fixed."""
    if mixed.size_in_bits is not None:
        return mixed.size_in_bits - sum(costs[name] * width for name, width in fixed.items())
    return (mixed.uniform_bits or 0) * sum(cost for name, cost in costs.items() if name not in fixed)
