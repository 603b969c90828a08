"""The same steps as the papers' repositories write them.

float32, default memory format, a forward hook a BatchNorm that keeps its input, losses layer by layer, the teacher run
again for the student's target, `.item()` every step. Nothing here is used by the package.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.quant import Student, parse_scheme, prepare
from dfqbench.synth import Generator
from dfqbench.testing.bench.networks import Shape

Step = Callable[[], None]
CHAINS = 64


class Hooked:
    """BatchNorm layers of a network, and what the last passes gave them."""

    def __init__(self, network: nn.Module) -> None:
        self.norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        self.inputs: list[Tensor] = []
        for norm in self.norms:
            norm.register_forward_hook(lambda _m, args, _out: self.inputs.append(args[0]))

    def pairs(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Input, running mean and running variance of each layer."""
        found = []
        for norm, x in zip(self.norms, self.inputs, strict=True):
            if norm.running_mean is None or norm.running_var is None:
                raise ValueError("no running statistics")
            found.append((x, norm.running_mean, norm.running_var))
        return found


def prepared(shape: Shape, network: nn.Module) -> Student:
    """A W4A4 student in the default memory format; each of its layers gives a map of its own."""
    student = prepare(network, parse_scheme("w4a4"), shape.card).to(memory_format=torch.contiguous_format)
    for quantizer in student.activation_quantizers():
        # Where somebody listens nothing is joined, and nothing overwritten.
        quantizer.register_forward_hook(lambda *_: None)
    return student


def student_of(shape: Shape, network: nn.Module) -> Student:
    """A W4A4 student in the default memory format with ranges from one batch."""
    student = prepared(shape, network)
    with torch.no_grad(), student.observing("minmax"):
        student(torch.randn(shape.batch, *shape.card.input_size, device=shape.device))
    return student


def generator_step(shape: Shape, extra: str) -> Step:
    """One step of generator and student: GDFQ's, and what a method adds (`centroids`, `attention`, `margin`)."""
    network, classes, batch = shape.teacher(), shape.card.classes, shape.batch
    hooked, student = Hooked(network), student_of(shape, network)
    generator = Generator(shape.card.input_size, classes, embedding=shape.card.input_size[1] <= 64)
    generator = generator.to(shape.device).to(memory_format=torch.contiguous_format)
    adam = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999), foreach=False)
    sgd = torch.optim.SGD(student.parameters(), lr=1e-6, momentum=0.9, nesterov=True, foreach=False)

    def step() -> None:
        hooked.inputs.clear()
        labels = torch.randint(0, classes, (batch,), device=shape.device)
        images = generator(torch.randn(batch, 100, device=shape.device), labels, None)
        logits = network(images)
        loss = F.cross_entropy(logits, labels)
        for x, mean, var in hooked.pairs():
            loss = loss + 0.1 / len(hooked.norms) * F.mse_loss(x.mean((0, 2, 3)), mean)
            loss = loss + 0.1 / len(hooked.norms) * F.mse_loss(x.var((0, 2, 3), unbiased=False), var)
        loss = loss + added(extra, hooked, network, student, images)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        loss.item()
        images = images.detach()
        wanted = network(images).detach()
        found = student(images)
        if extra == "margin":
            total = F.cross_entropy(found, labels) + F.mse_loss(found, wanted)
        else:
            kd = F.kl_div(F.log_softmax(found / 20, 1), F.softmax(wanted / 20, 1), reduction="batchmean") * 40
            total = F.cross_entropy(found, labels) + kd
        sgd.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        sgd.step()
        total.item()

    return step


def added(extra: str, hooked: Hooked, network: nn.Module, student: Student, images: Tensor) -> Tensor:
    """A method's own loss, written plainly."""
    total = torch.zeros((), device=images.device)
    if extra == "centroids":
        for x, mean, var in hooked.pairs()[len(hooked.norms) // 2 :]:
            total = total + F.mse_loss(x.mean((2, 3)), mean.expand(len(x), -1))
            total = total + F.mse_loss(x.var((2, 3), unbiased=False), var.expand(len(x), -1))
    elif extra == "attention":
        first = [x.square().mean(1) for x in hooked.inputs]
        hooked.inputs.clear()
        with batch_statistics(hooked.norms):
            network(images)
        for one, other in zip(first, [x.square().mean(1) for x in hooked.inputs], strict=True):
            total = total + F.mse_loss(F.normalize(one.flatten(1)), F.normalize(other.flatten(1)))
    elif extra == "margin":
        gap = (network(images) - student(images)).abs().mean(1)
        total = total + torch.exp(-((gap - 1) ** 2) / 2).mean()
    return total


class batch_statistics:  # noqa: N801 - reads as a function
    """BatchNorm layers in training mode, without a change of their buffers."""

    def __init__(self, norms: list[nn.BatchNorm2d]) -> None:
        self._norms = norms

    def __enter__(self) -> None:
        for norm in self._norms:
            norm.training, norm.track_running_stats = True, False

    def __exit__(self, *_: object) -> None:
        for norm in self._norms:
            norm.training, norm.track_running_stats = False, True


def image_iteration(shape: Shape, rule: str) -> Step:
    """One update of 64 images: ZeroQ's (`adam`) or DFFG's (`sign`)."""
    network = shape.teacher()
    hooked = Hooked(network)
    images = torch.randn(CHAINS, *shape.card.input_size, device=shape.device).requires_grad_()
    momentum = torch.zeros_like(images)
    adam = torch.optim.Adam([images], lr=0.5)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, min_lr=1e-4, patience=100)

    def step() -> None:
        hooked.inputs.clear()
        images.grad = None
        network(images)
        loss = torch.zeros((), device=shape.device)
        for x, mean, var in hooked.pairs():
            own_mean, own_std = x.mean((2, 3)), torch.sqrt(x.var((2, 3)) + 1e-6)
            loss = loss + (own_mean - mean).square().sum(1).mean()
            loss = loss + (own_std - torch.sqrt(var + 1e-6)).square().sum(1).mean()
        loss = loss + images.mean((2, 3)).square().sum(1).mean()
        loss = loss + (images.var((2, 3)).sqrt() - 1).square().sum(1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        if rule == "adam":
            adam.step()
            plateau.step(loss.item())
            return
        with torch.no_grad():
            gradient = _gradient(images)
            size = gradient.abs().sum((1, 2, 3), keepdim=True)
            momentum.mul_(0.9).add_(gradient / size)
            images.sub_(0.01 * momentum.sign()).clamp_(-2.2, 2.7)
        loss.item()

    return step


def _gradient(tensor: Tensor) -> Tensor:
    if tensor.grad is None:
        raise ValueError("no gradient")
    return tensor.grad


def calibration(shape: Shape) -> Step:
    """A student made and its ranges taken from one batch of 64 images."""
    network, images = shape.teacher(), torch.randn(CHAINS, *shape.card.input_size, device=shape.device)

    def step() -> None:
        student = prepared(shape, network)
        with torch.no_grad(), student.observing("minmax"):
            student(images)

    return step


def evaluation(shape: Shape, images: Tensor, labels: Tensor, size: int) -> Step:
    """Accuracy batch by batch, weights rounded in every batch, the count read in every batch."""
    student = student_of(shape, shape.teacher())

    def step() -> None:
        right = 0
        with torch.no_grad():
            for begin in range(0, len(images), size):
                logits = student(images[begin : begin + size])
                right += int((logits.argmax(1) == labels[begin : begin + size]).sum().item())

    return step
