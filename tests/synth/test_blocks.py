"""Networks computed block by block: the same outputs, statistics and gradients as layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dfqbench.models.cifar import CifarResNet
from dfqbench.native import binding, passes
from dfqbench.synth.attention import batch_statistics
from dfqbench.synth.blocks import BLOCKS, Note, block_graph
from dfqbench.synth.moments import Moments
from dfqbench.synth.statistics import BatchNormStatistics


def trained(network: nn.Module, side: int) -> nn.Module:
    """With statistics of noise, and scales of either sign."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    network.train()
    with torch.no_grad():
        network(torch.randn(8, 3, side, side))
    return network.eval().requires_grad_(requires_grad=False).to(memory_format=torch.channels_last)


def resnet18() -> nn.Module:
    from torchvision.models import resnet18 as made

    return made(num_classes=10)


def mobilenet() -> nn.Module:
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(num_classes=10)


def projected() -> nn.Module:
    return CifarResNet(8, 10, "B")


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "padded shortcuts": (lambda: CifarResNet(8, 10, "A"), 32),
    "projected shortcuts": (projected, 32),
    "in-place ReLU": (resnet18, 64),
    "ReLU6": (mobilenet, 64),
}


def answers(network: nn.Module, images: Tensor) -> tuple[list[Tensor], list[str]]:
    """Output, statistics and the images' gradient of a loss of both; and the order of the layers."""
    x = images.clone().requires_grad_()
    with BatchNormStatistics(network, fused=True) as watch:
        out = network(x)
        last = watch.last
        gap = (last.per_sample.mean - last.running.mean).square().mean()
        loss = out.square().mean() + gap + (last.per_sample.var - last.running.var).square().mean()
        (grad,) = torch.autograd.grad(loss, x)
        return [out.detach(), last.per_sample.mean.detach(), last.per_sample.var.detach(), grad], [
            layer.name for layer in last.layers
        ]


def unheard(_name: str, _layer: nn.Module) -> Note:
    """For graphs that are looked at only."""

    def note(x: Tensor, moments: Moments | None = None) -> None:
        pass

    return note


def count_blocks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Maps that went through the compiled pass of a block, and were differentiated."""
    maps: list[Tensor] = []
    real = passes.block_backward

    def counted(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            maps.append(x)
        return real(x, *args, **kwargs)

    monkeypatch.setattr(passes, "block_backward", counted)
    return maps


@pytest.mark.parametrize("kind", NETWORKS)
def test_blocks_equal_layers(library: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, side = NETWORKS[kind]
    network = trained(make(), side).double()
    images = torch.randn(2, 3, side, side).contiguous(memory_format=torch.channels_last)
    with binding.using(None):
        exact, order = answers(network, images.double())
        plain, _ = answers(network.float(), images)
    graph = block_graph(network, unheard)
    assert graph is not None
    blocks = len(list(graph.network.get_submodule(BLOCKS).children()))
    assert blocks >= len(order) // 2
    ran = count_blocks(monkeypatch)
    found, found_order = answers(network, images)
    assert found_order == order
    assert len(ran) == blocks
    for one, other, true in zip(found, plain, exact, strict=True):
        # A random network's gradients are ill-conditioned: blocks may be as far from the truth as layers are.
        far = float((other - true).norm())
        assert float((one - true).norm()) <= 3 * far + 1e-6 * float(true.norm())


def test_autocast_agrees(library: str) -> None:
    network = trained(CifarResNet(8, 10, "A"), 32)
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = answers(network, images)
        with binding.using(None):
            plain, _ = answers(network, images)
    for one, other in zip(found, plain, strict=True):
        assert float((one.float() - other.float()).norm()) <= 0.05 * float(other.float().norm())


def test_the_networks_own_hooks_are_called_and_its_forward_is_given_back(library: str) -> None:
    network = trained(CifarResNet(8, 10, "A"), 32)
    calls: list[int] = []
    network.register_forward_pre_hook(lambda _m, args: calls.append(len(args[0])))
    with BatchNormStatistics(network, fused=True) as watch:
        assert "forward" in vars(network)
        network(torch.randn(3, 3, 32, 32))
        assert len(watch.last.layers) == 7
    assert calls == [3]
    assert "forward" not in vars(network)
    assert all("forward" not in vars(module) for module in network.modules())


def test_somebody_who_looks_inside_sees_every_layer(library: str) -> None:
    network = trained(CifarResNet(8, 10, "A"), 32)
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with BatchNormStatistics(network, fused=True) as watch:
        network(images)
        alone = watch.last.per_sample.mean
        seen: list[str] = []
        handles = [
            module.register_forward_hook(lambda _m, _a, _o, name=name: seen.append(name))
            for name, module in network.named_modules()
            if isinstance(module, (nn.ReLU, nn.BatchNorm2d))
        ]
        network(images)
        torch.testing.assert_close(watch.last.per_sample.mean, alone, rtol=1e-4, atol=1e-5)
        for handle in handles:
            handle.remove()
    assert len(seen) == len(handles) == 14


def test_batch_statistics_and_pauses_are_respected(library: str) -> None:
    network = trained(CifarResNet(8, 10, "A"), 32)
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), batch_statistics(network):
        expected = network(images)
    with BatchNormStatistics(network, fused=True) as watch, torch.no_grad():
        network(images)
        before = watch.last
        with batch_statistics(network), watch.paused():
            torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
        assert [layer.name for layer in watch.last.layers] == [layer.name for layer in before.layers]
        with batch_statistics(network):
            torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
        assert len(watch.last.layers) == 7


class One(nn.Module):
    """Base of networks with one convolution and one BatchNorm layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)


class Twice(One):
    """Calls one BatchNorm layer at two places."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return torch.relu(self.norm(x)).mean((2, 3))


class Branching(One):
    """Looks at its data."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return torch.relu(x).mean((2, 3)) if bool(x.sum() > 0) else x.mean((2, 3))


class Used(One):
    """Others read what is between BatchNorm and ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return (torch.relu(x) + x).mean((2, 3))


class Kept(nn.Module):
    """Base of networks that are no chain of pure calls: two convolutions and BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.switched = False
        self.note: Tensor | None = None


class AddsToResidual(Kept):
    def forward(self, x: Tensor) -> Tensor:
        r = torch.relu(self.norm1(self.conv1(x)))
        kept = a = r + 0.5
        a += self.norm2(self.conv2(r))
        return (torch.relu(a) + kept).mean((2, 3))


class ChangesResidual(Kept):
    def forward(self, x: Tensor) -> Tensor:
        r = self.norm1(self.conv1(x))
        y = self.norm2(self.conv2(torch.tanh(r))) + r
        return (torch.relu_(r) + torch.relu(y)).mean((2, 3))


class Noisy(Kept):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm1(self.conv1(x)) + torch.ones(8, 1, 1)).mean((2, 3)) + torch.randn(1)


class Notes(Kept):
    def forward(self, x: Tensor) -> Tensor:
        self.note = torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))
        return self.note.mean((2, 3))


class NamedAdd(Kept):
    def __init__(self) -> None:
        super().__init__()
        self.add = nn.Bilinear(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        r = torch.relu(self.norm1(self.conv1(x))).unsqueeze(-1)
        y = self.add(self.norm2(self.conv2(r.squeeze(-1))).unsqueeze(-1), r)
        return torch.relu(y.squeeze(-1)).mean((2, 3))


@pytest.mark.parametrize("kind", [ChangesResidual, Noisy, Notes])
def test_what_might_be_computed_otherwise_has_no_graph(library: str, kind: type[Kept]) -> None:
    network = trained(kind(), 16)
    assert isinstance(network, Kept)
    network.note = None
    assert block_graph(network, unheard) is None
    assert network.note is None  # tracing has left nothing behind


@pytest.mark.parametrize("kind", [NamedAdd, AddsToResidual])
def test_what_tracing_would_get_wrong_is_computed_as_ever(library: str, kind: type[nn.Module]) -> None:
    """A module named like an operation; an addition in place, which a traced graph makes anew."""
    network = trained(kind(), 16)
    images = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    found, _ = answers(network, images)
    with binding.using(None):
        plain, _ = answers(network, images)
    torch.testing.assert_close(found[0], plain[0], rtol=1e-4, atol=1e-5)


class Switched(Kept):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return (2 * x if self.switched else x).mean((2, 3))


def test_a_switch_is_heeded(library: str) -> None:
    network = trained(Switched(), 16)
    assert isinstance(network, Switched)
    images = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    watch = BatchNormStatistics(network, fused=True)
    with watch, torch.no_grad():
        once = network(images)
        assert watch._blocks is not None
    network.switched = True
    with watch, torch.no_grad():
        torch.testing.assert_close(network(images), 2 * once)
        assert watch._blocks is not None


def test_a_graph_that_disagrees_is_dropped(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = trained(CifarResNet(8, 10, "A"), 32)
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = network(images)
    watch = BatchNormStatistics(network, fused=True)
    with watch, torch.no_grad():
        assert watch._blocks is not None
        monkeypatch.setattr(watch._blocks.network, "forward", lambda _: 1.01 * expected)
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)
        assert vars(watch)["_blocks"] is None
        assert len(watch.last.layers) == 7


def test_a_hook_of_before_is_neither_missed_nor_kept(library: str) -> None:
    network = trained(CifarResNet(8, 10, "A"), 32)
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    block = next(module for module in network.modules() if type(module).__name__ == "BasicBlock")
    with torch.no_grad():
        plain = network(images)
        handle = block.register_forward_hook(lambda _m, _a, out: 3 * out)
        hooked = network(images)
        watch = BatchNormStatistics(network, fused=True)
        with watch:
            torch.testing.assert_close(network(images), hooked, rtol=1e-4, atol=1e-4)
        handle.remove()
        with watch:
            torch.testing.assert_close(network(images), plain, rtol=1e-4, atol=1e-4)
            assert watch._blocks is not None


def test_backward_hooks_are_called(library: str) -> None:
    network = trained(CifarResNet(8, 10, "A"), 32)
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    block = next(module for module in network.modules() if type(module).__name__ == "BasicBlock")
    calls: list[int] = []
    block.register_full_backward_hook(lambda *_: calls.append(1))
    with BatchNormStatistics(network, fused=True):
        network(images).sum().backward()
    assert calls == [1]


def test_a_copy_made_meanwhile_is_a_network_of_its_own(library: str) -> None:
    network = trained(CifarResNet(8, 10, "A"), 32)
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with BatchNormStatistics(network, fused=True) as watch, torch.no_grad():
        network(images)
        other = copy.deepcopy(network)
        for parameter in other.parameters():
            parameter.zero_()
        assert not other(images).any()
        assert len(watch.last.layers) == 7


@pytest.mark.parametrize("kind", [Twice, Branching, Used])
def test_what_is_no_block_stays_as_it_is(library: str, kind: type[nn.Module]) -> None:
    network = trained(kind(), 16)
    assert block_graph(network, unheard) is None
    images = torch.randn(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    found, _ = answers(network, images)
    with binding.using(None):
        plain, _ = answers(network, images)
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
