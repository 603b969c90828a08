from __future__ import annotations

import pytest
import torch

from dfqbench.synth import RunningMoments

DECAY = 0.8


def _batches(count: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn((5 + i, 2), generator=random) * (i + 1) + 10 * i for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 6])
def test_weights_fall_by_the_decay_and_sum_to_1(count: int) -> None:
    batches, running = _batches(count), RunningMoments((2,), DECAY, torch.device("cpu"))
    for batch in batches:
        running.update(batch)
    weights = torch.tensor([DECAY ** (count - 1 - i) for i in range(count)])
    weights /= weights.sum()
    mean = sum(w * b.mean(0) for w, b in zip(weights, batches, strict=True))
    var = sum(w * (b - mean).square().mean(0) for w, b in zip(weights, batches, strict=True))
    torch.testing.assert_close(running.mean, mean)
    torch.testing.assert_close(running.std, torch.as_tensor(var).sqrt())


def test_deviation_of_equal_values_is_0_whatever_their_size() -> None:
    running = RunningMoments((), 0.99, torch.device("cpu"))
    for _ in range(20):
        running.update(torch.full((4,), 1e4))
    assert float(running.mean) == pytest.approx(1e4)
    assert float(running.std) == pytest.approx(0, abs=0.01)


def test_values_carry_no_gradient() -> None:
    running = RunningMoments((), 0.99, torch.device("cpu"))
    running.update(torch.ones(3, requires_grad=True))
    assert not running.mean.requires_grad


def test_state_restores_the_sequence() -> None:
    batches, first = _batches(4), RunningMoments((2,), DECAY, torch.device("cpu"))
    for batch in batches[:2]:
        first.update(batch)
    second = RunningMoments((2,), DECAY, torch.device("cpu"))
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for batch in batches[2:]:
        first.update(batch)
        second.update(batch)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.var, second.var)
