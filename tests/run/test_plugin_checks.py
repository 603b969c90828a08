"""Plugin code that changes the teacher or the modes of torch is found out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from dfqbench.api.errors import Invalid
from dfqbench.run.worker.plugin_checks import TeacherCheck
from dfqbench.testing.toys import toy_images, toy_network


def _first(network: nn.Module) -> nn.Parameter:
    return next(network.parameters())


def _pass_in_train_mode(network: nn.Module) -> None:
    network.train()(toy_images(4))
    network.eval()


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "mode": lambda network: network.train(),
    "running statistics": _pass_in_train_mode,
    "weight": lambda network: nn.init.zeros_(_first(network).requires_grad_(False)),
    "weight behind its version": lambda network: _first(network).data.mul_(2.0),
    "gradients of a weight": lambda network: _first(network).requires_grad_(not _first(network).requires_grad),
    "dtype": lambda network: network.double(),
    "forward": lambda network: setattr(network, "forward", len),
    "autocast": lambda _: torch.set_autocast_enabled("cpu", True),
    "default dtype": lambda _: torch.set_default_dtype(torch.float64),
    "gradients": lambda _: torch.set_grad_enabled(False),
}
SEEN_IN_A_CALL = ("mode", "running statistics", "weight", "autocast", "gradients")


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    yield
    torch.set_autocast_enabled("cpu", False)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


@pytest.mark.parametrize("change", CHANGES)
def test_change_in_a_phase_is_refused(change: str) -> None:
    network = toy_network()
    with pytest.raises(Invalid, match="plugin code changed the teacher or torch: "), TeacherCheck(network).phase():
        CHANGES[change](network)


@pytest.mark.parametrize("change", SEEN_IN_A_CALL)
def test_change_in_a_call_is_refused(change: str) -> None:
    network = toy_network()
    with pytest.raises(Invalid), TeacherCheck(network).call():
        CHANGES[change](network)


def test_what_is_undone_is_accepted() -> None:
    network = toy_network()
    check = TeacherCheck(network)
    with check.phase(), torch.no_grad():
        handle = network.register_forward_hook(lambda *_: None)
        weight = _first(network).clone()
        _first(network).zero_().add_(weight)
        handle.remove()
    check.check_hooks()


def test_hook_that_is_left_is_refused() -> None:
    network = toy_network()
    check = TeacherCheck(network)
    next(network.children()).register_forward_hook(lambda *_: None)
    with pytest.raises(Invalid, match="the hooks of '"):
        check.check_hooks()
