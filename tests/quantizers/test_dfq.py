"""DFQ: the network computes the same after equalization, and the errors of rounding cancel on the mean."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api import InputError, ModelCard, SampleSource, Unavailable
from dfqbench.models.build import build_teacher
from dfqbench.models.cifar import CifarResNet
from dfqbench.models.spec import ModelSpec
from dfqbench.quant import Student, load_student, parse_scheme, prepare, save_student
from dfqbench.quant.coverage import measure_coverage
from dfqbench.quantizers.dfq import Dfq, DfqParams
from dfqbench.quantizers.equalization import absorb_biases, convolution_pairs, correct_biases, equalize, ranges
from dfqbench.synth import FixedSource
from dfqbench.synth.no_images import NoSource
from dfqbench.targets.catalogue import Catalogue
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_images, toy_network

CARD = ModelCard((3, 16, 16), (0.5,) * 3, (0.5,) * 3, 4)
IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Separable(nn.Module):
    """Convolution - depthwise - convolution with ReLU6, in functions and modules, and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(8)
        self.pointwise = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.grouped = nn.Sequential(nn.Conv2d(8, 12, 3, groups=2, bias=False), nn.BatchNorm2d(12), nn.LeakyReLU(0.1))
        self.last = nn.Sequential(nn.Conv2d(12, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6), nn.GELU())
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.pointwise(F.relu6(self.depthwise_norm(self.depthwise(x))))
        return self.head(self.last(self.grouped(x)).mean((2, 3)))


def separable() -> nn.Module:
    return uneven(Separable())


def uneven(network: nn.Module) -> nn.Module:
    """Give the channels of a network different ranges and BatchNorm statistics."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            size = torch.rand(len(module.weight), generator=generator)
            module.weight.data.normal_(generator=generator).mul_((4 * size).exp().view(-1, 1, 1, 1) / 20)
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(std=0.1, generator=generator)
            module.get_buffer("running_var").uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(generator=generator)
    return network.eval()


def in_float(network: nn.Module, card: ModelCard = CARD) -> Student:
    return prepare(network, parse_scheme("w32a32@tensor"), card)


def equalized(student: Student, sweeps: int = 300, largest: float = 1e3) -> Student:
    equalize(student, convolution_pairs(student), sweeps, 2e-4, largest)
    return student


@torch.no_grad()
def distance(a: nn.Module, b: nn.Module, images: Tensor) -> float:
    """Return the largest difference of logits, relative to the largest logit."""
    return float((a(images) - b(images)).abs().max() / b(images).abs().max())


def without_bounds(network: nn.Module, card: ModelCard = CARD) -> Student:
    student = in_float(network, card)
    student.remove_upper_bounds([pair.relu for pair in convolution_pairs(student) if math.isfinite(pair.bound)])
    return student


def mobilenet(real_data: Path) -> ModelSpec:
    (model,) = Catalogue.discover([real_data]).models("imagenet-val1300", ["mobilenetv1-025"])
    assert isinstance(model, ModelSpec)
    return model


def test_pairs_are_convolutions_with_one_reader_and_scalable_activations() -> None:
    student = in_float(separable())
    pairs = [(pair.first, pair.second, pair.bound) for pair in convolution_pairs(student)]
    layer = student.traced.get_submodule
    assert pairs == [
        (layer("depthwise"), layer("pointwise.0"), 6.0),
        (layer("grouped.0"), layer("last.0"), math.inf),
    ]


def test_resnet20_has_a_pair_in_each_block() -> None:
    assert len(convolution_pairs(in_float(CifarResNet(20)))) == 9


def test_equalization_keeps_the_outputs_of_resnet20() -> None:
    teacher = uneven(CifarResNet(20))
    card = ModelCard((3, 32, 32), (0.5,) * 3, (0.5,) * 3, 10)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    student = equalized(in_float(teacher, card))
    assert student.without_upper_bound == []
    assert distance(student, teacher, images) < 1e-5


def test_equalization_keeps_the_outputs_where_relu6_has_become_relu() -> None:
    teacher = separable()
    student = equalized(in_float(teacher))
    assert distance(student, without_bounds(teacher), IMAGES) < 1e-5
    assert distance(student, teacher, IMAGES) > 1e-2


@pytest.mark.slow
def test_equalization_of_mobilenetv1_keeps_outputs_and_makes_ranges_equal(real_data: Path) -> None:
    model = mobilenet(real_data)
    teacher, images = build_teacher(model, "cpu"), torch.randn(2, *model.card.input_size) / 2
    student = equalized(in_float(teacher, model.card), largest=1e12)
    assert len(student.without_upper_bound) == 26
    assert distance(student, without_bounds(teacher, model.card), images) < 1e-5
    assert distance(student, teacher, images) > 1e-2
    for pair in convolution_pairs(student):
        first, second = ranges(pair)
        used = (first > 0) & (second > 0)
        assert float((first / second).log().abs()[used].max()) < 1e-3


def test_equalization_makes_ranges_equal_and_leaves_zero_channels() -> None:
    student = in_float(separable())
    pairs = convolution_pairs(student)
    pairs[0].first.weight.data[3] = 0.0
    equalize(student, pairs, 300, 2e-4, 1e3)
    for index, pair in enumerate(pairs):
        first, second = ranges(pair)
        differing = (first / second).log().abs() > 1e-3
        assert differing.nonzero().flatten().tolist() == ([3] if index == 0 else [])


def test_scales_are_bounded() -> None:
    student = in_float(separable())
    before = ranges(convolution_pairs(student)[0])[0].detach()
    after = ranges(convolution_pairs(equalized(student, largest=1.2))[0])[0].detach()
    assert float((before / after).max()) == pytest.approx(1.2)
    assert float((before / after).min()) >= 1 / 1.2 - 1e-6


def normal_network(beta: float, gamma: float) -> nn.Sequential:
    """Return two convolutions without padding, for images whose channels are standard normal."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6, eps=0.0)
    norm.weight.data.fill_(gamma)
    norm.bias.data.fill_(beta)
    norm.get_buffer("running_mean").zero_()
    norm.get_buffer("running_var").copy_(conv.weight.data.square().sum((1, 2, 3)))
    second = (nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    return nn.Sequential(conv, norm, nn.ReLU(), *second, *head).eval()


def test_absorbed_biases_change_almost_nothing() -> None:
    teacher = normal_network(beta=4.0, gamma=1.0)
    student, images = in_float(teacher), torch.randn(64, 3, 16, 16)
    absorb_biases(convolution_pairs(student), 3.0)
    first = convolution_pairs(student)[0].first
    assert torch.allclose(first.get_buffer("bn_mean"), torch.full((6,), 3.0))
    with torch.no_grad():
        assert float((student(images) - teacher(images)).abs().max()) < 1e-3
        lowest = [float(s.traced.get_submodule("0")(images).mean()) for s in (in_float(teacher), student)]
    assert lowest[0] - lowest[1] == pytest.approx(1.0, abs=1e-4)


def test_biases_of_which_relu_cuts_a_part_are_not_absorbed() -> None:
    student = in_float(normal_network(beta=2.0, gamma=1.0))
    before = student.state_dict()
    absorb_biases(convolution_pairs(student), 3.0)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_nothing_is_absorbed_across_relu6() -> None:
    student = in_float(separable())
    pairs = [pair for pair in convolution_pairs(student) if pair.bound == 6.0]
    for pair in pairs:
        pair.first.get_buffer("bn_mean").fill_(100.0)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    absorb_biases(pairs, 3.0)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 1.0), (0.5, 2.0), (-1.0, 0.5)])
def test_corrected_layers_have_the_mean_output_of_the_float_network(beta: float, gamma: float) -> None:
    teacher = normal_network(beta, gamma)
    images = torch.randn(400, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    errors = []
    for correct in (False, True):
        student = prepare(teacher, parse_scheme("w3a32@tensor"), CARD)
        if correct:
            correct_biases(student, CARD)
        layer = student.traced.get_submodule("3")
        float_layer = in_float(teacher).traced.get_submodule("3")
        with torch.no_grad():
            hidden = teacher[:3](images)
            errors.append(float((layer(hidden) - float_layer(hidden)).mean((0, 2, 3)).abs().max()))
    assert errors[1] < 1e-3
    assert errors[0] > 20 * errors[1]


def test_a_layer_that_is_called_twice_keeps_its_bias() -> None:
    class Twice(Separable):
        def forward(self, x: Tensor) -> Tensor:
            x = self.depthwise_norm(self.depthwise(self.stem(x)))
            return self.head(self.pointwise(self.pointwise(x)).mean((2, 3))[:, :6])

    student = prepare(uneven(Twice()), parse_scheme("w3a32@tensor"), CARD)
    before = {name: value.clone() for name, value in student.state_dict().items() if "bias" in name}
    correct_biases(student, CARD)
    changed = [name for name, value in before.items() if not torch.equal(value, student.state_dict()[name])]
    assert all("pointwise" not in name for name in changed)
    assert any("depthwise" in name for name in changed)


def dfq(scheme: str, source: SampleSource | None = None, **params: object) -> Student:
    ctx = ToyContext(bits=parse_scheme(scheme))
    source = FixedSource(toy_images(64)) if source is None else source
    return Dfq(DfqParams(**params)).quantize(toy_network(), source, ctx)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["w4a4@tensor", "w3a8@deploy"])
@pytest.mark.parametrize("source", [NoSource(), None])
def test_students_are_on_their_levels(scheme: str, source: SampleSource | None) -> None:
    student = dfq(scheme, source)
    assert measure_coverage(student, toy_images(8)).violations == []


def test_every_step_can_be_left_out() -> None:
    off = {"sweeps": 0, "absorb_deviations": None, "correct_bias": False}
    nearest = dict(prepare(toy_network(), parse_scheme("w4a4@tensor"), ToyContext().card).named_parameters())
    left_out = dict(dfq("w4a4@tensor", NoSource(), **off).named_parameters())
    assert all(torch.equal(value, nearest[name]) for name, value in left_out.items())
    for step in ("sweeps", "correct_bias"):
        changed = dfq("w4a4@tensor", NoSource(), **{name: value for name, value in off.items() if name != step})
        assert not all(torch.equal(value, nearest[name]) for name, value in changed.named_parameters())


@pytest.mark.parametrize("protocol", ["gdfq", "brecq", "squant"])
def test_protocols_without_folding_are_refused(protocol: str) -> None:
    with pytest.raises(Unavailable, match=f"dfq needs folded BatchNorm, which protocol '{protocol}' does not have"):
        dfq(f"w4a4@{protocol}")


def test_a_saved_student_keeps_relu_in_place_of_relu6(tmp_path: Path, real_data: Path) -> None:
    model = mobilenet(real_data)
    student = prepare(build_teacher(model, "cpu"), parse_scheme("w8a8@tensor"), model.card)
    equalized(student, sweeps=2)
    images = torch.randn(2, *model.card.input_size)
    with torch.no_grad(), student.observing("minmax"):
        student(images)
    save_student(student, tmp_path, model.as_dict())
    loaded = load_student(tmp_path, trusted=True)
    assert loaded.without_upper_bound == student.without_upper_bound
    assert torch.equal(loaded(images), student(images))
    description = json.loads((tmp_path / "student.json").read_text())
    description["without_upper_bound"] = ["conv_stem"]
    (tmp_path / "student.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match="the network has no ReLU6 'conv_stem'"):
        load_student(tmp_path, trusted=True)
