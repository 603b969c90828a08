from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api import Batch, Unavailable
from dfqbench.models.digits import mobilenet9
from dfqbench.quant import Student, parse_scheme, prepare
from dfqbench.quant.trace import trace
from dfqbench.quantizers.distill_losses import adversarial, gap_entropy_loss, kd_loss, masked_cross_entropy
from dfqbench.quantizers.distill_params import DistillParams
from dfqbench.quantizers.distill_recipes import RECIPES
from dfqbench.quantizers.distill_terms import StudentLoss, StudentPass
from dfqbench.quantizers.feature_alignment import alignment_loss, block_ends, map_sizes
from dfqbench.quantizers.grad_cam import explained_layer, grad_cam
from dfqbench.quantizers.layer_outputs import LayerOutputs
from dfqbench.quantizers.low_pass import LowPass
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_card, toy_images, toy_network
from residual import residual_network

PROTOCOLS = ("gdfq", "deploy", "brecq", "brecq-folded")
BLOCKS = ["3.conv2", "4.conv2"]


def _random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _value(loss: Tensor) -> float:
    return loss.detach().item()


def _student(teacher: nn.Module, scheme: str = "w3a3@gdfq") -> Student:
    student = prepare(teacher, parse_scheme(scheme), toy_card())
    with torch.no_grad(), student.observing("minmax"):
        student(toy_images(16))
    return student


def _loss(params: DistillParams, teacher: nn.Module | None = None, student: Student | None = None) -> StudentLoss:
    teacher = teacher or residual_network()
    return StudentLoss(teacher, student or _student(teacher), params, ToyContext())


def _ends(network: nn.Module, example: Tensor) -> list[str]:
    graph = trace(network)
    return block_ends(graph, map_sizes(graph, example))


# AdaDFQ's gap entropy


@pytest.mark.parametrize("temperature", [5.0, 20.0])
def test_gap_entropy_is_half_the_variance_of_small_gaps(temperature: float) -> None:
    teacher, gap = _random(64, 10), _random(64, 10, seed=1, scale=0.1)
    loss = gap_entropy_loss(teacher, teacher - gap, temperature) + temperature**2 * math.log(10)
    assert _value(loss) == pytest.approx(_value(gap.var(1, correction=0).mean() / 2), rel=0.01)


@pytest.mark.parametrize(("temperature", "expected"), [(20.0, 11.24), (5.0, 9.48)])
def test_gap_entropy_saturates_for_large_gaps(temperature: float, expected: float) -> None:
    gap = _random(20_000, 10, scale=5.0)
    loss = gap_entropy_loss(gap, torch.zeros_like(gap), temperature) + temperature**2 * math.log(10)
    assert _value(loss) == pytest.approx(expected, abs=0.15)


def test_gap_entropy_ignores_a_constant_and_has_the_numeric_gradient() -> None:
    teacher, student = _random(4, 5), _random(4, 5, seed=1).requires_grad_()
    loss = gap_entropy_loss(teacher, student, 5.0)
    assert _value(gap_entropy_loss(teacher, student + 3, 5.0)) == pytest.approx(_value(loss), abs=1e-12)
    assert torch.autograd.gradcheck(lambda z: gap_entropy_loss(teacher, z, 5.0), (student,))


def test_gap_entropy_needs_two_classes() -> None:
    teacher = toy_network(classes=1)
    with pytest.raises(Unavailable, match="entropy of one class"):
        StudentLoss(teacher, _student(teacher), RECIPES["adadfq"], ToyContext(card=toy_card(classes=1)))


# SynQ's masked cross-entropy


def test_only_images_that_the_teacher_recognizes_have_cross_entropy() -> None:
    teacher = torch.tensor([[4.0, 0, 0], [0, 0, 0], [4.0, 0, 0]]).double()
    targets = torch.tensor([0, 1, 1])
    logits = _random(3, 3).requires_grad_()
    loss = masked_cross_entropy(logits, targets, teacher, 0.5)
    assert _value(loss) == pytest.approx(_value(F.cross_entropy(logits[:1], targets[:1])) / 3)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().sum(1).gt(0).tolist() == [True, False, False]
    released = masked_cross_entropy(logits, targets, teacher, 0.5, "released")
    assert _value(released - loss) == pytest.approx(2 * math.log(3) / 3)
    assert torch.equal(torch.autograd.grad(released, logits)[0], gradient)
    soft = F.one_hot(targets, 3).double()
    assert _value(masked_cross_entropy(logits, soft, teacher, 0.5)) == pytest.approx(_value(loss))
    assert _value(masked_cross_entropy(logits, targets, teacher, 2.0)) == pytest.approx(
        _value(F.cross_entropy(logits, targets))
    )


# Feature alignment


def test_alignment_is_the_mean_difference_of_normalised_attention() -> None:
    teacher, student = _random(2, 3, 2, 4), _random(2, 3, 2, 4, seed=1).requires_grad_()
    expected = 0.0
    for p, q in zip(teacher, student, strict=True):
        maps = [f.square().mean(0).flatten() for f in (p, q)]
        a, b = (m / m.norm() for m in maps)
        expected += _value((a - b).square().sum()) / (2 * 8)
    assert _value(alignment_loss(teacher, student)) == pytest.approx(expected)
    assert _value(alignment_loss(teacher, 3 * teacher)) == pytest.approx(0.0, abs=1e-12)
    assert _value(alignment_loss(teacher, torch.zeros_like(teacher))) > 0
    assert torch.autograd.gradcheck(lambda f: alignment_loss(teacher, f), (student,))


def test_ends_of_residual_branches_are_aligned() -> None:
    assert _ends(residual_network(), torch.zeros(1, 3, 8, 8)) == BLOCKS


def test_pointwise_convolutions_after_depthwise_ones_are_aligned() -> None:
    network = mobilenet9().eval()
    ends = _ends(network, torch.zeros(1, 1, 8, 8))
    layers = dict(network.named_modules())
    assert ends
    for name in ends:
        layer = layers[name]
        assert isinstance(layer, nn.Conv2d)
        assert layer.kernel_size == (1, 1)
    depthwise = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert len(ends) == len(depthwise)


class InPlace(nn.Module):
    """A block that writes into its tensors, as torchvision's does."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        self.shortcut = block.shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        result: Tensor = self.relu(out)
        return result


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("in_place", [False, True])
def test_features_of_a_student_are_the_teachers_where_it_rounds_little(protocol: str, in_place: bool) -> None:
    teacher, images = residual_network(), toy_images(4)
    if in_place:
        teacher[3], teacher[4] = InPlace(teacher[3]), InPlace(teacher[4])
    student = _student(teacher, f"w8a8@{protocol}")
    with LayerOutputs(teacher, trace(teacher), BLOCKS) as recorder:
        teacher(images)
        expected = {name: layer.normalized for name, layer in recorder.last.items()}
    with LayerOutputs(student, student.traced, BLOCKS) as recorder:
        student(images)
        layers = recorder.last
    block: Any = teacher[3]
    x = teacher[2](teacher[1](teacher[0](images)))
    torch.testing.assert_close(expected["3.conv2"], block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x))))))
    for name, value in expected.items():
        error = (layers[name].normalized - value).norm() / value.norm()
        assert _value(error) < 0.1, name
    loss = torch.stack([layer.normalized.square().sum() for layer in layers.values()]).sum()
    loss.backward()
    assert not any(module._forward_hooks for module in (*teacher.modules(), *student.modules()))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (toy_network(), "needs residual or depthwise-separable blocks"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), *residual_network()), "single position"),
    ],
)
def test_networks_without_blocks_to_align_are_unavailable(network: nn.Module, message: str) -> None:
    with pytest.raises(Unavailable, match=message):
        _ends(network, torch.zeros(1, 3, 8, 8))
    with pytest.raises(Unavailable, match=message):
        StudentLoss(network, _student(network), RECIPES["hast"], ToyContext())


# Grad-CAM


def test_grad_cam_is_the_formula() -> None:
    weight = _random(3, 2, seed=2)
    features = _random(2, 2, 3, 3).requires_grad_()
    logits = features.mean((2, 3)) @ weight.T
    cam = grad_cam(logits, features, (3, 3))
    for image in range(2):
        top = int(logits[image].argmax())
        channels = (weight[top] / 9).clamp_min(1e-10)
        expected = (channels[:, None, None] * features[image]).sum(0).relu()
        expected = (expected - expected.min()) / (expected.max() - expected.min() + 1e-8)
        torch.testing.assert_close(cam[image], expected, check_dtype=False, rtol=1e-5, atol=1e-6)
    assert grad_cam(logits, features, (8, 6)).shape == (2, 8, 6)
    (gradient,) = torch.autograd.grad(cam.sum(), features)
    assert gradient.abs().sum() > 0


def test_last_convolution_with_more_than_one_position_is_explained() -> None:
    network = nn.Sequential(*residual_network()[:5], nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 4, 1), nn.Flatten())
    sizes = map_sizes(trace(network), torch.zeros(1, 3, 8, 8))
    assert sizes["6"] == 1
    assert explained_layer(network, sizes) == "4.shortcut.0"
    with pytest.raises(Unavailable, match="Grad-CAM needs a convolution"):
        explained_layer(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), {})


# Low-pass filter


def test_low_pass_is_a_gaussian_in_the_spectrum() -> None:
    images = _random(2, 3, 8, 6).float()
    spectrum = torch.fft.fftshift(torch.fft.fft2(images), dim=(2, 3))
    y, x = torch.meshgrid(torch.arange(8) - 4, torch.arange(6) - 3, indexing="ij")
    spectrum = spectrum * torch.exp(-(x.square() + y.square()) / (2 * 2.0**2))
    expected = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(2, 3))).real
    torch.testing.assert_close(LowPass((8, 6), 2.0, images.device)(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 6), (7, 7)])
def test_low_pass_keeps_constants_and_with_a_high_cutoff_everything(size: tuple[int, int]) -> None:
    images = _random(2, 3, *size).float()
    torch.testing.assert_close(LowPass(size, 1e6, images.device)(images), images, rtol=1e-5, atol=1e-5)
    constant = torch.full((1, 3, *size), 0.7)
    torch.testing.assert_close(LowPass(size, 1.0, images.device)(constant), constant)


# Adversarial images


def test_adversarial_images_move_along_the_sign_of_the_numeric_gradient() -> None:
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten()).double() for _ in range(2))
    images = _random(1, 1, 4, 4).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return kd_loss(teacher(x), student(x), 2.0, "batchmean")

    moved = adversarial(images, loss(images), 0.02)
    assert not moved.requires_grad
    for index in range(16):
        step = torch.zeros(16, dtype=torch.float64)
        step[index] = 1e-5
        step = step.view(1, 1, 4, 4)
        slope = _value(loss(images + step) - loss(images - step))
        assert _value((moved - images).flatten()[index]) == pytest.approx(math.copysign(0.02, slope))


def test_step_of_zero_doubles_the_loss() -> None:
    params = dataclasses.replace(RECIPES["hast"], fgsm_epsilon=0.0)
    teacher = residual_network()
    student = _student(teacher)
    batch = Batch(toy_images(8))
    once = _loss(dataclasses.replace(params, fgsm_weight=0.0), teacher, student)(batch)
    twice = _loss(params, teacher, student)(batch)
    assert _value(twice) == pytest.approx(2 * _value(once))


def test_loss_of_hast_is_the_formula() -> None:
    teacher, images = residual_network(), toy_images(8)
    student = _student(teacher)
    params = RECIPES["hast"].for_card(toy_card())
    with LayerOutputs(teacher, trace(teacher), BLOCKS) as p, LayerOutputs(student, student.traced, BLOCKS) as q:
        x = images.clone().requires_grad_()
        losses = []
        for _ in range(2):
            kd = 20 * kd_loss(teacher(x), student(x), 20.0, "batchmean")
            parts = [alignment_loss(p.last[name].normalized, q.last[name].normalized) for name in BLOCKS]
            losses.append(kd + 1000 * (parts[0] + parts[1]))
            if len(losses) == 1:
                x = adversarial(x, losses[0], 0.01)
    expected = torch.stack(losses).sum()
    assert _value(_loss(params, teacher, student)(Batch(images))) == pytest.approx(_value(expected), rel=1e-5)


@pytest.mark.parametrize("large", [False, True])
def test_synq_leaves_alignment_out_on_small_adversarial_images_and_cam_always(large: bool) -> None:
    params = RECIPES["synq"].for_card(toy_card(size=65 if large else 8))
    terms = {term.name: term for term in _loss(params).terms}
    assert list(terms) == ["ce", "kd", "features", "cam"]
    assert terms["features"].perturbs
    assert terms["features"].on_perturbed == large
    assert (terms["cam"].perturbs, terms["cam"].on_perturbed) == (False, False)


# All terms


def test_terms_vanish_for_a_student_that_is_its_teacher() -> None:
    teacher, images = residual_network(), toy_images(4).requires_grad_()
    with LayerOutputs(teacher, trace(teacher), ["4.shortcut.0", *BLOCKS]) as recorder:
        logits = teacher(images)
        layers = recorder.last
    view = StudentPass(images, logits.argmax(1), logits, logits, layers, layers)
    params = dataclasses.replace(RECIPES["synq"].for_card(toy_card()), mse_weight=1.0)
    losses = {term.name: _value(term.loss(view)) for term in _loss(params).terms}
    assert set(losses) == {"ce", "kd", "mse", "features", "cam"}
    assert [losses[name] for name in ("kd", "mse", "features", "cam")] == pytest.approx([0, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("recipe", ["adadfq", "hast", "synq", "dafl", "akd"])
def test_gradients_reach_the_student_alone(recipe: str) -> None:
    teacher = residual_network()
    student = _student(teacher)
    images = toy_images(8)
    loss = _loss(RECIPES[recipe].for_card(toy_card()), teacher, student)(Batch(images))
    loss.backward(inputs=list(student.parameters()))
    assert images.grad is None
    assert all(parameter.grad is None for parameter in teacher.parameters())
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert len(gradients) > 5
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_terms_that_are_off_cost_no_pass_and_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    off = dataclasses.replace(
        RECIPES["synq"], feature_weight=0.0, cam_weight=0.0, fgsm_weight=0.0, ce_threshold=0.0
    ).for_card(toy_card())
    assert (off.feature_weight, off.ce_threshold) == (0.0, 0.0)
    teacher = toy_network()  # no blocks
    monkeypatch.setattr("dfqbench.quantizers.distill_terms.trace", None)
    monkeypatch.setattr("dfqbench.quantizers.distill_terms.masked_cross_entropy", None)
    student = _student(teacher)
    passes: list[int] = []
    for network in (teacher, student):
        network.register_forward_pre_hook(lambda _module, args: passes.append(len(args[0])))
    images = toy_images(8)
    _loss(off, teacher, student)(Batch(images, teacher_logits=torch.zeros(8, 4)))
    assert passes == [8]
    _loss(off, teacher, student)(Batch(images))
    assert passes == [8, 8, 8]


def test_labels_are_the_teachers_classes_where_the_source_has_none() -> None:
    teacher, images = residual_network(), toy_images(8)
    loss = _loss(dataclasses.replace(RECIPES["synq"].for_card(toy_card()), fgsm_weight=0.0), teacher)
    labels = teacher(images).argmax(1)
    assert _value(loss(Batch(images))) == pytest.approx(_value(loss(Batch(images, labels))))
    soft = F.one_hot(labels, 4).float()
    assert _value(loss(Batch(images))) == pytest.approx(_value(loss(Batch(images, soft))))


def test_values_follow_the_card() -> None:
    params = RECIPES["hast"]
    small, few, large = (
        params.for_card(card) for card in (toy_card(classes=100), toy_card(classes=10), toy_card(100, size=224))
    )
    assert [p.feature_weight for p in (small, few, large)] == [2000.0, 1000.0, 4000.0]
    assert [p.fgsm_epsilon for p in (small, few, large)] == [0.02, 0.01, 0.01]
    assert [(p.lr, p.lr_steps, p.batch) for p in (few, large)] == [
        (1e-5, (20, 40, 60), 64),
        (1e-6, (100, 200, 350), 16),
    ]
    off = dataclasses.replace(params, feature_weight=0.0)
    assert off.for_card(toy_card(classes=10)).feature_weight == 0
    assert DistillParams(feature_weight=5.0).for_card(toy_card(classes=10)).feature_weight == 5.0
    assert RECIPES["adadfq"].for_card(toy_card(size=224)).gap_entropy_temperature == 5.0
