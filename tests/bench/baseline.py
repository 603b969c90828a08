"""The training steps as the papers' repositories write them, for comparison.

float32, default memory format, a forward hook that keeps each BatchNorm layer's input, losses layer by layer, the
teacher run again for the student's target, `.item()` every step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.quant import parse_scheme, prepare
from dfqbench.synth import Generator
from shapes import IMAGES, Shape


class Hooked:
    """The BatchNorm layers of a network, with inputs, running means and variances since `seen` was last cleared."""

    def __init__(self, network: nn.Module) -> None:
        self.norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        for norm in self.norms:
            norm.register_forward_hook(self._keep)

    def _keep(self, norm: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
        self.seen.append((args[0], norm.get_buffer("running_mean"), norm.get_buffer("running_var")))


def method_term(
    method: str, hooked: Hooked, network: nn.Module, student: nn.Module, images: Tensor, *, labels: Tensor
) -> Tensor:
    total = images.new_zeros(())
    if method == "clusterq":
        # Statistics of each class as a group, against a centroid and against a perturbed one.
        for x, mean, var in hooked.seen[len(hooked.norms) // 2 :]:
            for label in torch.unique(labels):
                group = x[labels == label]
                for statistic, centroid in ((group.mean((0, 2, 3)), mean), (group.var((0, 2, 3)).sqrt(), var.sqrt())):
                    total = total + F.mse_loss(statistic, centroid)
                    total = total + F.mse_loss(statistic, centroid + torch.randn_like(centroid))
    elif method == "acq":
        # Attention maps under running statistics and under those of the batch.
        maps = [F.normalize(x.square().mean(1).flatten(1)) for x, *_ in hooked.seen]
        hooked.seen.clear()
        for norm in hooked.norms:
            norm.training, norm.track_running_stats = True, False
        network(images)
        for norm, first, (x, *_) in zip(hooked.norms, maps, hooked.seen, strict=True):
            norm.training, norm.track_running_stats = False, True
            total = total + F.mse_loss(first, F.normalize(x.square().mean(1).flatten(1)))
    elif method == "temporal":
        gap = (network(images) - student(images)).abs().mean(1)
        total = total + torch.exp(-((gap - 1) ** 2) / 2).mean()
    return total


def generator_step(shape: Shape, method: str) -> Callable[[], None]:
    """Return one step of generator and student: GDFQ's, with the method's own term."""
    network, device = shape.teacher().to(memory_format=torch.contiguous_format), shape.device
    student = prepare(network, parse_scheme("w4a4"), shape.card).to(memory_format=torch.contiguous_format)
    for quantizer in student.activation_quantizers():
        quantizer.register_forward_hook(lambda *_: None)  # keeps the layers from being fused
    with torch.no_grad(), student.observing("minmax"):
        student(shape.noise(shape.batch).contiguous())
    hooked = Hooked(network)
    generator = Generator(shape.card.input_size, shape.classes, embedding=shape.side <= 64)
    generator = generator.to(device).to(memory_format=torch.contiguous_format)
    adam = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999), foreach=False)
    sgd = torch.optim.SGD(student.parameters(), lr=1e-6, momentum=0.9, nesterov=True, foreach=False)

    def step() -> None:
        hooked.seen.clear()
        labels = torch.randint(0, shape.classes, (shape.batch,), device=device)
        images = generator(torch.randn(shape.batch, 100, device=device), labels, None)
        loss = F.cross_entropy(network(images), labels)
        for x, mean, var in hooked.seen:
            loss = loss + 0.1 / len(hooked.norms) * F.mse_loss(x.mean((0, 2, 3)), mean)
            loss = loss + 0.1 / len(hooked.norms) * F.mse_loss(x.var((0, 2, 3), unbiased=False), var)
        groups = labels
        if method == "clusterq" and shape.batch < 8 * shape.classes:  # a further batch of one class
            hooked.seen.clear()
            groups = torch.randint(0, shape.classes, (1,), device=device).expand(shape.batch)
            network(generator(torch.randn(shape.batch, 100, device=device), groups, None))
        loss = loss + method_term(method, hooked, network, student, images, labels=groups)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        loss.item()
        images = images.detach()
        target, logits = network(images).detach(), student(images)
        loss = F.cross_entropy(logits, labels)
        if method == "temporal":
            loss = loss + F.mse_loss(logits, target)
        else:
            log_p = F.log_softmax(logits / 20, 1)
            loss = loss + F.kl_div(log_p, F.softmax(target / 20, 1), reduction="batchmean") * 40
        sgd.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()
        loss.item()

    return step


def image_step(shape: Shape, method: str) -> Callable[[], None]:
    """Return one update of a batch of images: ZeroQ's by Adam, DFFG's by the momentum's sign."""
    network = shape.teacher().to(memory_format=torch.contiguous_format)
    hooked, images = Hooked(network), shape.noise(IMAGES).contiguous().requires_grad_()
    labels = torch.randint(0, shape.classes, (IMAGES,), device=shape.device)
    momentum, adam = torch.zeros_like(images), torch.optim.Adam([images], lr=0.5)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, min_lr=1e-4, patience=100)

    def zeroq() -> None:
        hooked.seen.clear()
        network(images)
        loss = images.mean((2, 3)).square().sum(1).mean()
        loss = loss + (images.var((2, 3)).sqrt() - 1).square().sum(1).mean()
        for x, mean, var in hooked.seen:
            loss = loss + (x.mean((2, 3)) - mean).square().sum(1).mean()
            std = torch.sqrt(x.var((2, 3)) + 1e-6)
            loss = loss + (std - torch.sqrt(var + 1e-6)).square().sum(1).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        plateau.step(loss.item())

    def dffg() -> None:
        hooked.seen.clear()
        loss = F.cross_entropy(network(images), labels) + 1e-5 * images.flatten(1).norm(dim=1).mean()
        for x, mean, var in hooked.seen:
            std = torch.sqrt(x.var((0, 2, 3), unbiased=False) + 1e-6)
            gap = (x.mean((0, 2, 3)) - mean).norm() + (std - torch.sqrt(var + 1e-6)).norm()
            loss = loss + gap / len(hooked.norms)
        down, right = images[:, :, 1:], images[..., 1:]
        for difference in (
            *(down - images[:, :, :-1], right - images[..., :-1]),
            *(down[..., 1:] - images[:, :, :-1, :-1], down[..., :-1] - images[:, :, :-1, 1:]),
        ):
            loss = loss + 2.5e-5 * difference.norm()
        (gradient,) = torch.autograd.grad(loss, images)
        momentum.mul_(0.9).add_(gradient / gradient.abs().sum((1, 2, 3), keepdim=True))
        with torch.no_grad():
            images.sub_(0.1 * momentum.sign())
        loss.item()

    return zeroq if method == "zeroq" else dffg
