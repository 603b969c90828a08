"""The rewriter on real architectures, and students on disk."""

from __future__ import annotations

import dataclasses
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api import InputError, ModelCard, Unavailable
from dfqbench.models.build import build_teacher
from dfqbench.models.spec import ModelSpec
from dfqbench.quant import Scheme, Student, load_student, parse_scheme, prepare, save_student
from dfqbench.quant.coverage import measure_coverage
from dfqbench.quant.range_rules import known_range_rules
from dfqbench.quant.scheme import GDFQ, Override
from dfqbench.targets.catalogue import Catalogue


def card(side: int = 64) -> ModelCard:
    return ModelCard((3, side, side), (0.5,) * 3, (0.5,) * 3, 1000)


def noise(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


IMAGES = noise()


def made(network: nn.Module) -> Student:
    """Return a student whose ranges have not been learned; the network's inputs have 16 pixels a side."""
    return prepare(network.eval(), parse_scheme("w4a4"), card(16))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "torchvision resnet18": lambda: torchvision.models.resnet18(weights=None),
    "torchvision mobilenet_v2": lambda: torchvision.models.mobilenet_v2(weights=None),
    "torchvision densenet121": lambda: torchvision.models.densenet121(weights=None),
    "torchvision shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(weights=None),
    "torchvision mobilenet_v3": lambda: torchvision.models.mobilenet_v3_small(weights=None),
    "timm mobilenetv1, same padding": lambda: timm.create_model("mobilenetv1_100", pad_type="same"),
    "timm resnetv2, fused norms": lambda: timm.create_model("resnetv2_50"),
    "timm efficientvit, untraceable parts": lambda: timm.create_model("efficientvit_b0"),
}


def build(name: str) -> nn.Module:
    """Return a network whose BatchNorm statistics are not the identity, so that folding is tested."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        network = NETWORKS[name]()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.get_buffer("running_mean").normal_(std=0.1)
                module.get_buffer("running_var").uniform_(0.5, 1.5)
    return network.eval().requires_grad_(False)


def observed(student: Student, images: Tensor, rule: str = "minmax") -> Student:
    with torch.no_grad(), student.observing(rule):
        student(images)
    return student


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("protocol", ["gdfq", "deploy"])
def test_float_student_equals_teacher(name: str, protocol: str) -> None:
    teacher = build(name)
    student = prepare(teacher, parse_scheme(f"w32a32@{protocol}"), card())
    with torch.no_grad():
        expected, logits = teacher(IMAGES), student(IMAGES)
    assert not student.operands
    assert (logits - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("name", NETWORKS)
def test_deploy_quantizes_every_layer(name: str) -> None:
    student = observed(prepare(build(name), parse_scheme("w4a4@deploy"), card()), IMAGES)
    coverage = measure_coverage(student, IMAGES)
    assert coverage.violations == []
    assert coverage.levels_ok
    outside = [entry for entry in coverage.float_layers if entry.startswith("(outside layers)")]
    assert coverage.float_layers == outside
    assert coverage.share == 1.0 or outside
    first, *inner, last = student.layers.values()
    assert (first.weight, first.input, last.weight, last.input) == (8, 8, 8, 8)
    assert {layer.weight for layer in inner} == {4}


def test_gdfq_leaves_network_and_pooled_input_in_float() -> None:
    student = observed(prepare(build("torchvision resnet18"), parse_scheme("w4a4@gdfq"), card()), IMAGES)
    coverage = measure_coverage(student, IMAGES)
    assert coverage.float_layers == ["conv1: input", "fc: input"]
    assert coverage.violations == []
    # One quantizer for each of the 17 calls of a ReLU, although blocks share their ReLU module; 21 weights.
    assert len(student.activation_quantizers()) == 17
    assert sum(operand.role == "weight" for operand in student.operands) == 21


def test_gdfq_mobilenet_keeps_linear_bottlenecks_in_float() -> None:
    student = observed(prepare(build("torchvision mobilenet_v2"), parse_scheme("w4a4@gdfq"), card()), IMAGES)
    coverage = measure_coverage(student, IMAGES)
    assert "features.2.conv.0.0: input" in coverage.float_layers
    assert coverage.violations == []


class Functional(nn.Module):
    """Functional activations of three kinds and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = (self.second(x) + x).relu()
        x = torch.relu_(self.second(x))
        return self.head(x.mean((2, 3)))


def test_functional_activations_have_a_quantizer_each() -> None:
    images = noise(16)
    student = observed(made(Functional()), images)
    assert len(student.activation_quantizers()) == 3
    assert measure_coverage(student, images).float_layers == ["first: input", "head: input"]


class Branching(nn.Module):
    """Cannot be traced: its control flow looks at values; one activation module is called twice."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.act = nn.ReLU()
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        x = self.act(self.conv(x) + 1.0)
        return F.relu(x - 5) if self.functional else self.act(x * 3.0)


def branching(part: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), part, nn.Flatten(), nn.Linear(8 * 36, 1000)).eval()


def test_an_untraceable_part_gets_a_quantizer_for_each_call() -> None:
    images = noise(8)
    student = observed(prepare(branching(Branching(False)), parse_scheme("w4a4"), card(8)), images)
    ranges = {q.name: q.high.item() for q in student.activation_quantizers()}
    assert len(ranges) == 3
    first, second = (high for name, high in ranges.items() if "#call" in name)
    assert first != second
    assert measure_coverage(student, images).violations == []
    assert torch.equal(student(images), student(images))


class TwoNames(Branching):
    """Cannot be traced, and holds its convolution under two names."""

    def __init__(self) -> None:
        super().__init__(False)
        self.again = self.conv

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.again(super().forward(x))
        return y


@pytest.mark.parametrize("label", ["w4a4@gdfq", "w4a4@deploy"])
def test_a_layer_with_two_names_in_an_untraceable_part(label: str) -> None:
    images = noise(8)
    student = observed(prepare(branching(TwoNames()), parse_scheme(label), card(8)), images)
    assert measure_coverage(student, images).violations == []
    assert "2.conv" in {operand.name for operand in student.operands if operand.role == "weight"}


def test_unreachable_activation_is_unavailable() -> None:
    with pytest.raises(Unavailable, match=r"untraceable part cannot be reached: 2"):
        prepare(branching(Branching(True)), parse_scheme("w4a4"), card(8))
    images = noise(8)
    student = observed(prepare(branching(Branching(True)), parse_scheme("w4a4@deploy"), card(8)), images)
    assert measure_coverage(student, images).share == 1.0


def test_a_network_without_activations_is_unavailable_under_gdfq() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 1000)).eval()
    with pytest.raises(Unavailable, match="no activation function"):
        prepare(network, parse_scheme("w4a4"), card(8))


def test_overrides_change_single_layers() -> None:
    protocol = dataclasses.replace(GDFQ, name="mine", overrides=(Override("layer4.*", w_bits=8, a_bits=8),))
    student = prepare(build("torchvision resnet18"), Scheme(3, 3, protocol), card())
    assert student.layers["layer4.1.conv2"].weight == 8
    assert student.layers["layer3.1.conv2"].weight == 3
    assert {q.bits for q in student.activation_quantizers() if q.name.startswith("layer4")} == {8}


def test_student_trains_and_teacher_is_unchanged() -> None:
    teacher = build("torchvision resnet18")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = observed(prepare(teacher, parse_scheme("w4a4"), card()), IMAGES)
    student(IMAGES).square().mean().backward()
    grads = [p.grad for p in student.parameters()]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not student.train().training


def test_ranges_move_only_while_observing() -> None:
    student = observed(prepare(build("torchvision resnet18"), parse_scheme("w4a4"), card()), IMAGES)
    high = student.activation_quantizers()[0].high.item()
    student(IMAGES * 10)
    assert student.activation_quantizers()[0].high.item() == high
    assert student.range_steps == 1
    with student.observing("minmax"):
        student(IMAGES * 10)
    assert student.activation_quantizers()[0].high.item() > high


@pytest.mark.parametrize("protocol", ["gdfq", "deploy"])
def test_loaded_student_equals_saved_student(protocol: str, tmp_path: Path) -> None:
    model = Catalogue.discover([]).models("digits")[0]
    assert isinstance(model, ModelSpec)
    images = torch.randn(8, *model.card.input_size)
    student = observed(prepare(build_teacher(model), parse_scheme(f"w3a3@{protocol}"), model.card), images)
    save_student(student, tmp_path, model.as_dict())
    loaded = load_student(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(images), student(images))
    assert loaded.scheme == student.scheme


def test_a_folder_without_a_student(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no student"):
        load_student(tmp_path)
    (tmp_path / "student.json").write_text("{}")
    (tmp_path / "student.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        load_student(tmp_path)


@pytest.mark.parametrize("rule", known_range_rules())
def test_ranges_resume_from_state(rule: str) -> None:
    teacher, batches = Functional().eval(), list(torch.randn(6, 4, 3, 16, 16))
    student, b = made(teacher), made(teacher)
    for number, batch in enumerate(batches):
        if number == 3:
            b.load_state_dict(student.state_dict())
        for member in (student,) if number < 3 else (student, b):
            with torch.no_grad(), member.observing(rule):
                member(batch)
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in b.state_dict().items())
    assert torch.equal(student(batches[0]), b(batches[0]))


def test_minimum_and_maximum_widen_a_range_that_is_known() -> None:
    images = noise(16)
    student, b = observed(made(Functional()), images), made(Functional())
    b.load_state_dict(student.finished_state())
    observed(b, 0.01 * images)
    ranges = [[q.high.item() for q in member.activation_quantizers()] for member in (student, b)]
    assert ranges[0][0] == ranges[1][0]
    b.activation_quantizers()[0].set_range(0.0, 100.0)
    with torch.no_grad(), b.observing("ema"):
        b(images)
    assert b.activation_quantizers()[0].high.item() == pytest.approx(ranges[0][0])


@pytest.mark.parametrize("name", ["first", "observers"])
def test_finished_state_loads_into_new_student(name: str) -> None:
    modules = {name: nn.Sequential(nn.Conv2d(3, 4, 1)), "act": nn.ReLU(), "flat": nn.Flatten()}
    network, images = nn.Sequential(OrderedDict(modules)), noise(16)
    student, b = observed(made(network), images, "ema"), made(network)
    b.load_state_dict(student.finished_state())
    assert torch.equal(b(images), student(images))
