"""The built-in protocols on real architectures: which operands each quantizes, at which bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, fx, nn

from dfqbench.api import ModelCard
from dfqbench.models.build import build_teacher
from dfqbench.models.spec import ModelSpec
from dfqbench.quant import FakeQuantize, Student, parse_scheme, prepare
from dfqbench.quant.coverage import Coverage, measure_coverage
from dfqbench.quant.scheme import PROTOCOLS, Scheme
from dfqbench.targets.catalogue import Catalogue

CARD = ModelCard((3, 16, 16), (0.5,) * 3, (0.5,) * 3, 10)
LAYER_INPUTS = ("deploy", "tensor", "squant", "brecq", "brecq-folded")
FLOAT_IMAGE = ("squant", "brecq", "brecq-folded")


class Block(nn.Module):
    """A residual block with a convolution and BatchNorm, and its identity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) + x)


def residual() -> nn.Module:
    """Return four layers: a stem, two residual blocks and a classifier."""
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Block(), Block(), *head)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.get_buffer("running_mean").normal_(std=0.1)
                module.get_buffer("running_var").uniform_(0.5, 1.5)
    return network.eval()


def images(size: tuple[int, int, int] = CARD.input_size) -> Tensor:
    return torch.randn(4, *size, generator=torch.Generator().manual_seed(2))


def observed(network: nn.Module, label: str, card: ModelCard = CARD) -> tuple[Student, Coverage]:
    student = prepare(network, parse_scheme(label), card)
    batch = images(card.input_size)
    with torch.no_grad(), student.observing("minmax"):
        student(batch)
    return student, measure_coverage(student, batch)


def widths(student: Student) -> tuple[list[int], list[int]]:
    layers = student.layers.values()
    return [layer.weight for layer in layers], [layer.input for layer in layers]


@pytest.mark.parametrize(
    ("protocol", "weights", "inputs"),
    [
        ("deploy", [8, 3, 3, 8], [8, 5, 5, 8]),
        ("tensor", [8, 3, 3, 8], [8, 5, 5, 8]),
        ("squant", [3, 3, 3, 3], [32, 5, 5, 8]),
        ("brecq", [8, 3, 3, 8], [32, 8, 5, 8]),
        ("brecq-folded", [8, 3, 3, 8], [32, 8, 5, 8]),
    ],
)
def test_bits_of_every_layer(protocol: str, weights: list[int], inputs: list[int]) -> None:
    student, coverage = observed(residual(), f"w3a5@{protocol}")
    assert widths(student) == (weights, inputs)
    assert coverage.violations == []
    assert coverage.float_layers == (["0: input"] if protocol in FLOAT_IMAGE else [])
    folded = not any(isinstance(module, nn.BatchNorm2d) for module in student.modules())
    assert folded is (protocol in {"deploy", "tensor", "brecq-folded"})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_float_student_equals_its_teacher(protocol: str) -> None:
    teacher = residual()
    student = prepare(teacher, parse_scheme(f"w32a32@{protocol}"), CARD)
    assert not student.operands
    torch.testing.assert_close(student(images()), teacher(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("protocol", LAYER_INPUTS)
def test_bits_of_the_ends_leave_float_weights_and_activations_in_float(protocol: str) -> None:
    weights_only, _ = observed(residual(), f"w4a32@{protocol}")
    assert set(widths(weights_only)[1]) == {32}
    assert {operand.role for operand in weights_only.operands} == {"weight"}
    activations_only, _ = observed(residual(), f"w32a4@{protocol}")
    assert {operand.role for operand in activations_only.operands} == {"activation"}


def reads(network: nn.Module, operator: str) -> list[bool]:
    """Return, for each call of a function in a graph, whether one of its arguments is quantized."""
    assert isinstance(network, fx.GraphModule)

    def quantized(node: object) -> bool:
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return False
        return isinstance(network.get_submodule(str(node.target)), FakeQuantize)

    calls = [node for node in network.graph.nodes if operator in str(node.target)]
    return [any(quantized(argument) for argument in node.args) for node in calls]


def test_identity_and_convolution_of_a_block_share_the_quantized_tensor() -> None:
    folded, _ = observed(residual(), "w4a4@brecq-folded")
    assert reads(folded.network, "add") == [True, True]
    deploy, _ = observed(residual(), "w4a4@deploy")
    assert reads(deploy.network, "add") == [False, False]
    names = [quantizer.name for quantizer in folded.activation_quantizers()]
    assert names == ["2.conv.input", "3.conv.input", "6.input"]


def test_both_layers_behind_the_first_read_eight_bits() -> None:
    class Shortcut(Block):
        def __init__(self) -> None:
            super().__init__()
            self.shortcut = nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.norm(self.conv(x)) + self.shortcut(x))

    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Shortcut(), Block(), *head).eval()
    student, coverage = observed(network, "w4a4@brecq")
    assert {name: layer.input for name, layer in student.layers.items()} == {
        **{"0": 32, "2.conv": 8, "2.shortcut": 8, "3.conv": 4, "6": 8}
    }
    assert len(student.activation_quantizers()) == 3
    assert coverage.violations == []


def test_weights_of_one_range_have_few_levels_in_the_whole_tensor() -> None:
    for protocol, few in (("tensor", True), ("deploy", False)):
        student, _ = observed(residual(), f"w3a4@{protocol}")
        weight = student.network.get_submodule("2.conv").weight
        assert isinstance(weight, Tensor)
        assert (weight.unique().numel() <= 7) is few


def test_weights_with_a_range_for_each_channel_are_no_tensor_ones() -> None:
    student, _ = observed(residual(), "w3a4@tensor")
    by_channel = prepare(residual(), parse_scheme("w3a4@deploy"), CARD)
    student.network.set_submodule("2.conv", by_channel.network.get_submodule("2.conv"))
    coverage = measure_coverage(student, images())
    assert coverage.violations == ["weight 2.conv"]
    assert "2.conv: weight" in coverage.float_layers


def test_a_claimed_input_that_is_not_quantized_is_a_violation() -> None:
    student, _ = observed(residual(), "w4a4@brecq")
    layer = student.network.get_submodule("3.conv")
    layer.register_forward_pre_hook(lambda _m, args: (args[0] * 1.01 + torch.randn_like(args[0]),))
    assert measure_coverage(student, images()).violations == ["input of 3.conv"]


@pytest.mark.parametrize("protocol", FLOAT_IMAGE)
def test_a_normalised_image_stays_in_float_as_well(protocol: str) -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = residual()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body((x - 0.5) / 0.25)
            return y

    student, coverage = observed(Normalised().eval(), f"w4a4@{protocol}")
    assert coverage.float_layers == ["body.0: input"]
    assert coverage.violations == []
    assert len(student.activation_quantizers()) == 3


def teacher(ref: str, folders: Sequence[Path] = ()) -> tuple[nn.Module, ModelCard]:
    models = Catalogue.discover(folders).models(ref.partition(":")[0].replace("cifar", "cifar10"))
    model = next(model for model in models if isinstance(model, ModelSpec) and model.name == ref)
    return build_teacher(model), model.card


def covers_all_but_a_float_image(network: nn.Module, card: ModelCard, protocol: str) -> Student:
    student, coverage = observed(network, f"w3a4@{protocol}", card)
    first = next(iter(student.layers))
    assert coverage.violations == []
    assert coverage.float_layers == ([f"{first}: input"] if protocol in FLOAT_IMAGE else [])
    assert (coverage.share == 1.0) is (protocol not in FLOAT_IMAGE)
    return student


@pytest.mark.parametrize("protocol", LAYER_INPUTS)
@pytest.mark.parametrize("name", ["digits:resnet8", "digits:mobilenet9"])
def test_coverage_of_trained_networks(name: str, protocol: str) -> None:
    network, card = teacher(name)
    student = covers_all_but_a_float_image(network, card, protocol)
    loaded = prepare(network, Scheme.from_dict(student.scheme.as_dict()), card)
    loaded.load_state_dict(student.finished_state())
    assert torch.equal(loaded(images(card.input_size)), student(images(card.input_size)))


@pytest.mark.parametrize("protocol", LAYER_INPUTS)
def test_coverage_of_a_cifar_resnet(real_data: Path, protocol: str) -> None:
    covers_all_but_a_float_image(*teacher("cifar:resnet20", [real_data]), protocol)


@pytest.mark.parametrize("protocol", ["tensor", "brecq"])
def test_coverage_of_inverted_residuals(protocol: str) -> None:
    with torch.random.fork_rng():
        network = timm.create_model("mobilenetv2_050").eval()
    covers_all_but_a_float_image(network, ModelCard((3, 32, 32), (0.5,) * 3, (0.5,) * 3, 1000), protocol)
