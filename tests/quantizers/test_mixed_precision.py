"""Sensitivity of layers, and schemes whose layers meet a budget."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import nn

from dfqbench.api.errors import Invalid, Unavailable
from dfqbench.quant import parse_scheme, prepare
from dfqbench.quant.fake_quantize import fake_quantize_weight
from dfqbench.quant.mixed import Mixed
from dfqbench.quant.scheme import GDFQ, Override, Scheme
from dfqbench.quantizers.mixed_precision import check_planned, layer_macs, measure_sensitivity, plan_scheme
from dfqbench.testing.toys import toy_card, toy_images, toy_network

WEIGHTS = {"0": 216, "3": 864, "8": 48}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return toy_network()


def widths(network: nn.Module, scheme: Scheme) -> dict[str, int]:
    return {name: bits.weight for name, bits in prepare(network, scheme, toy_card()).layers.items()}


@pytest.mark.parametrize("divergence", ["symmetric", "plain"])
def test_divergence_is_that_of_a_network_with_one_rounded_layer(network: nn.Module, divergence: str) -> None:
    images = toy_images(16)
    layers = measure_sensitivity(network, images, GDFQ, toy_card(), bits=(2, 4), divergence=divergence)
    assert [(layer.name, layer.weights) for layer in layers] == list(WEIGHTS.items())
    rounded = copy.deepcopy(network)
    weight = rounded.get_submodule("3").weight
    with torch.no_grad():
        weight.copy_(fake_quantize_weight(weight, GDFQ.weights, 2)[0])  # type: ignore[operator, arg-type]
        p, q = (net(images).double().softmax(1) for net in (network, rounded))
    forward, backward = ((a * (a / b).log()).sum(1).mean() for a, b in ((p, q), (q, p)))
    expected = forward if divergence == "plain" else (forward + backward) / 2
    assert layers[1].omega[2] == pytest.approx(float(expected), rel=1e-3)
    assert layers[1].omega[4] < layers[1].omega[2]


def test_measuring_leaves_the_network_as_it_is(network: nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())
    first = measure_sensitivity(network, toy_images(8), GDFQ, toy_card())
    assert measure_sensitivity(network, toy_images(8), GDFQ, toy_card()) == first
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_multiply_accumulates_of_layers(network: nn.Module) -> None:
    student = prepare(network, parse_scheme("w4a4"), toy_card())
    assert layer_macs(student, toy_images(1)) == {"0": 216 * 64, "3": 864 * 16, "8": 48}
    assert student.images_seen == 0


def test_size_of_an_eight_bit_network_gives_every_layer_eight_bits(network: nn.Module) -> None:
    for budget in ("size=8bit", "bops=8bit"):
        scheme = plan_scheme(network, toy_images(16), parse_scheme(f"w8a4:{budget}"), toy_card())
        assert widths(network, scheme) == dict.fromkeys(WEIGHTS, 8)


@pytest.mark.parametrize(("label", "most"), [("w3a4:size=3bit", 3 * 1128), ("w4a4:size=0.5KiB", 4096)])
def test_choice_within_a_size_is_the_best_of_all(network: nn.Module, label: str, most: int) -> None:
    scheme, images = parse_scheme(label), toy_images(16)
    planned = plan_scheme(network, images, scheme, toy_card())
    assert planned.label == scheme.label
    measured = measure_sensitivity(network, images, GDFQ, toy_card())

    def loss(choice: tuple[int, ...]) -> float:
        return sum(layer.omega[bits] for layer, bits in zip(measured, choice, strict=True))

    choices = itertools.product((2, 4, 8), repeat=3)
    fitting = [c for c in choices if sum(n * bits for n, bits in zip(WEIGHTS.values(), c, strict=True)) <= most]
    assert tuple(widths(network, planned).values()) == min(fitting, key=loss)


def test_operations_count_the_bits_of_inputs(network: nn.Module) -> None:
    scheme = plan_scheme(network, toy_images(16), parse_scheme("w3a4@squant:bops=3bit"), toy_card())
    chosen = widths(network, scheme)
    # The first layer reads the image in float, the last one 8 bits.
    costs = {"0": 216 * 64 * 32, "3": 864 * 16 * 4, "8": 48 * 8}
    assert sum(costs[name] * bits for name, bits in chosen.items()) <= 3 * sum(costs.values())
    assert chosen["0"] == 2


def test_layers_that_the_protocol_fixes_are_left_out(network: nn.Module) -> None:
    scheme = parse_scheme("w4a4@deploy:size=4bit")
    assert widths(network, plan_scheme(network, toy_images(16), scheme, toy_card())) == {"0": 8, "3": 4, "8": 8}


def test_bits_of_activations_in_overrides_stay(network: nn.Module) -> None:
    protocol = dataclasses.replace(
        parse_scheme("w4a4@squant").protocol, name="mine", overrides=(Override("3", a_bits=6),)
    )
    planned = plan_scheme(network, toy_images(16), Scheme(8, 4, protocol, Mixed("size=8bit")), toy_card())
    assert prepare(network, planned, toy_card()).layers["3"] == (8, 6)


def test_unreachable_size(network: nn.Module) -> None:
    with pytest.raises(Unavailable, match="raise the budget"):
        plan_scheme(network, toy_images(4), parse_scheme("w4a4:size=0.1KiB"), toy_card())


def test_finished_student_is_held_to_the_budget(network: nn.Module) -> None:
    scheme = parse_scheme("w3a4:size=3bit")

    def check(layers: dict[str, int], cell: Scheme = scheme) -> None:
        check_planned(prepare(network, scheme.with_layers(layers), toy_card()), cell, toy_images(1))

    check({"0": 4, "3": 2, "8": 8})
    with pytest.raises(Invalid, match="exceed the budget size=3bit"):
        check({"0": 4, "3": 4, "8": 2})
    with pytest.raises(Invalid, match="are not those of"):
        check({"0": 3, "3": 2, "8": 2})
    with pytest.raises(Invalid, match="are not those of"):
        check({"0": 2, "3": 2, "8": 2}, parse_scheme("w3a5:size=3bit"))
