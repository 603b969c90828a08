"""Biases as int32: what a student computes is what integer hardware computes."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api import ModelCard, Unavailable
from dfqbench.quant import FakeQuantize, Student, parse_scheme, prepare
from dfqbench.quant.coverage import measure_coverage
from dfqbench.quant.fake_quantize import fake_quantize_bias
from dfqbench.quant.scheme import EARLIER, PROTOCOLS, Protocol, Scheme

CARD = ModelCard((3, 8, 8), (0.5,) * 3, (0.5,) * 3, 5)
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    return nn.Sequential(*layers).eval()


def student(protocol: Protocol | str, bits: tuple[int, int] = (8, 8), teacher: nn.Module | None = None) -> Student:
    named = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    made = prepare(teacher or network(), Scheme(*bits, named), CARD)
    with torch.no_grad(), made.observing("minmax"):
        made(IMAGES)
    return made


def quantizer(made: Student, name: str) -> FakeQuantize:
    return next(quantizer for quantizer in made.activation_quantizers() if quantizer.name == name)


def integers_of_weight(weight: Tensor, protocol: str, bits: int) -> tuple[Tensor, Tensor]:
    """Return the symmetric integers of a weight and their step size, for each channel or the tensor."""
    magnitude = weight.abs().amax() if protocol == "tensor" else weight.abs().flatten(1).amax(1)
    step = magnitude / (2 ** (bits - 1) - 1)
    return torch.round(weight / step.view(-1, *(1,) * (weight.ndim - 1))).long(), step


def integers_of_input(x: Tensor, of: FakeQuantize) -> Tensor:
    """Return the integers of an activation, 0 .. 2^k - 1."""
    return (torch.round(x / of.scale) + of.zero_point).clamp(0, 2**of.bits - 1).long()


@pytest.mark.parametrize("bits", [(8, 8), (4, 4)])
@pytest.mark.parametrize("protocol", ["deploy", "tensor"])
def test_layers_compute_what_integer_arithmetic_computes(protocol: str, bits: tuple[int, int]) -> None:
    made, teacher = student(protocol, bits), network()
    outputs: dict[str, tuple[Tensor, Tensor]] = {}
    for name in ("2", "5"):
        made.network.get_submodule(name).register_forward_hook(
            lambda _m, args, out, name=name: outputs.update({name: (args[0], out)})
        )
    with torch.no_grad():
        made(IMAGES)
    for name, reader in (("2", "5.input"), ("5", None)):
        original: Any = teacher.get_submodule(name)
        x, out = outputs[name]
        source = quantizer(made, f"{name}.input")
        n_w, w_step = integers_of_weight(original.weight.detach(), protocol, made.layers[name].weight)
        n_x = integers_of_input(x, source) - source.zero_point
        step = source.scale.double() * w_step.double()
        n_b = torch.round(original.bias.detach().double() / step).long()
        # int32 sums, by float64, which holds them exactly.
        if name == "2":
            total = F.conv2d(n_x.double(), n_w.double(), n_b.double())
            step = step.view(-1, 1, 1) if step.ndim else step
        else:
            total = n_x.double() @ n_w.double().T + n_b
        assert float(total.abs().max()) < 2**31
        assert torch.equal(torch.round(out.double() / step), total)
        assert float((out.double() / step - total).abs().max()) < 0.05  # nothing is between two integers
        if reader is not None:
            following = quantizer(made, reader)
            requantized = torch.round(total.clamp_min(0) * (step / following.scale.double())) + following.zero_point
            assert torch.equal(
                integers_of_input(out.relu(), following), requantized.clamp(0, 2**following.bits - 1).long()
            )


def test_a_bias_in_float_lies_between_integers() -> None:
    made = student(EARLIER[0], (4, 4))
    layer: Any = made.network.get_submodule("2")
    _, w_step = integers_of_weight(network().get_submodule("2").weight.detach(), "deploy", 4)  # type: ignore[operator]
    integers = layer.bias.detach().double() / (quantizer(made, "2.input").scale.double() * w_step.double())
    assert float((integers - integers.round()).abs().max()) > 0.1


def test_saturated_bias_and_straight_through_gradient() -> None:
    bias = torch.tensor([1.0, -1.0, 0.26, 1e-12]).requires_grad_()
    steps = torch.tensor([2e-10, 2e-10, 0.2, 0.2])
    rounded = fake_quantize_bias(bias, torch.tensor(0.5), steps)
    largest = (2**31 - 1) * 1e-10
    torch.testing.assert_close(rounded.detach(), torch.tensor([largest, -(2**31) * 1e-10, 0.3, 0.0]), rtol=1e-6, atol=0)
    rounded.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert bias.grad is not None
    assert bias.grad.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_biases_train_in_float_and_survive_saving_and_copying() -> None:
    made = student("deploy", (4, 4))
    made.use_integer_convolutions()
    made(IMAGES).square().mean().backward()
    biases = {name: value for name, value in made.named_parameters() if "bias" in name}
    assert list(biases) == [f"network.{name}.parametrizations.bias.original" for name in (0, 2, 5)]
    assert all(value.grad is not None and bool(value.grad.abs().sum() > 0) for value in biases.values())
    with torch.no_grad():
        for value in biases.values():
            value.add_(0.37)
    fresh = prepare(network(), made.scheme, CARD)
    fresh.load_state_dict(made.finished_state())
    copied = copy.deepcopy(made)
    with torch.no_grad():
        made.network.get_submodule("0").get_parameter("parametrizations.weight.original").add_(0.1)
        assert torch.equal(fresh(IMAGES), copied(IMAGES))
        assert not torch.equal(made(IMAGES), copied(IMAGES))


@pytest.mark.parametrize("label", ["w4a32@deploy", "w32a4@deploy", "w4a4@brecq-folded", "w4a4@gdfq"])
def test_biases_stay_in_float_without_two_quantized_operands_or_by_protocol(label: str) -> None:
    made = prepare(network(), parse_scheme(label), CARD)
    assert not [name for name in made.state_dict() if "parametrizations.bias" in name]


def test_biases_of_layers_in_untraceable_parts_are_rounded() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x if x.sum() > 1e9 else self.conv(x)
            return y

    layers = nn.Conv2d(3, 3, 1), Branching(), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)
    made = student("deploy", (4, 4), nn.Sequential(*layers).eval())
    assert "network.1.conv.parametrizations.bias.original" in made.state_dict()
    assert measure_coverage(made, IMAGES).violations == []


def test_a_layer_with_two_inputs_has_no_one_int32_bias() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.head = nn.Linear(192, 5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.conv(self.conv(x).relu()).relu().flatten(1))
            return y

    with pytest.raises(Unavailable, match=r"layer 'conv' is called for several inputs.*integer_bias = false"):
        prepare(Twice().eval(), parse_scheme("w4a4@deploy"), CARD)
    floating = dataclasses.replace(PROTOCOLS["deploy"], name="mine", integer_bias=False)
    assert prepare(Twice().eval(), Scheme(4, 4, floating), CARD).operands


def test_biases_follow_a_fixed_step_of_the_weight() -> None:
    made = student("deploy")
    layer: Any = made.network.get_submodule("2")
    weight = layer.parametrizations.weight[0]
    scale, zero_point = weight.step(layer.parametrizations.weight.original) * 2, torch.zeros(4, dtype=torch.int32)
    weight.freeze(scale, zero_point)
    step = quantizer(made, "2.input").scale.double() * scale.double()
    integers = layer.bias.detach().double() / step
    assert torch.allclose(integers, integers.round(), atol=1e-6 * float(integers.abs().max()))
