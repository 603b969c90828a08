"""Results that are computed once."""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn

from dfqbench.native.prepared import Prepared
from dfqbench.synth.watched import affine_of_layer


class Doubles:
    def __init__(self) -> None:
        self.calls = 0
        self.kept: Prepared[Tensor] = Prepared()

    def of(self, *tensors: Tensor, setting: float = 2.0) -> Tensor:
        def compute() -> Tensor:
            self.calls += 1
            return tensors[0] * setting + sum(tensors[1:])

        return self.kept.get(tensors, compute, setting)


def test_a_result_is_computed_once_and_anew_where_something_has_changed() -> None:
    doubles, x, y = Doubles(), torch.ones(3), torch.zeros(3)
    first = doubles.of(x, y)
    assert doubles.of(x, y) is first
    assert doubles.calls == 1
    x.add_(1.0)
    assert torch.equal(doubles.of(x, y), torch.full((3,), 4.0))
    y.fill_(1.0)
    assert torch.equal(doubles.of(x, y), torch.full((3,), 5.0))
    assert torch.equal(doubles.of(x, y, setting=3.0), torch.full((3,), 7.0))
    assert torch.equal(doubles.of(x, torch.zeros(3)), torch.full((3,), 4.0))
    x.data = torch.zeros(3)
    assert torch.equal(doubles.of(x, y), torch.ones(3))
    assert doubles.calls == 6


def test_a_result_goes_with_its_tensor_and_inference_tensors_are_not_believed() -> None:
    doubles, x = Doubles(), torch.ones(3)
    doubles.of(x)
    assert len(doubles.kept._kept) == 1
    del x
    gc.collect()
    assert len(doubles.kept._kept) == 0
    with torch.inference_mode():
        y = torch.ones(3)
        before = doubles.of(y)
        y.add_(1.0)
        assert not torch.equal(doubles.of(y), before)


def test_a_layer_that_changes_is_seen_anew() -> None:
    layer = nn.BatchNorm2d(8).eval().requires_grad_(requires_grad=False)
    scale, shift = affine_of_layer(layer)
    assert affine_of_layer(layer)[0] is scale
    layer.running_mean = torch.full((8,), 2.0)
    assert torch.allclose(affine_of_layer(layer)[1], shift - 2.0 * scale)
    layer.eps = 3.0
    assert torch.allclose(affine_of_layer(layer)[0], torch.full((8,), 0.5))
    layer.weight.mul_(2.0)
    assert torch.allclose(affine_of_layer(layer)[0], torch.ones(8))
