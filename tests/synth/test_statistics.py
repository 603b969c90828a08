from __future__ import annotations

import pytest
import torch
from torch import nn

from dfqbench.api import Skip
from dfqbench.synth import BatchNormStatistics, batchnorm_layers
from dfqbench.testing.toys import toy_network


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn((5, 3, 8, 8), generator=torch.Generator().manual_seed(1))


def test_inputs_of_batchnorm_are_the_outputs_of_convolutions(images: torch.Tensor) -> None:
    # ZeroQ's released pairing, valid on a plain convolution-BatchNorm net: the i-th convolution's output.
    network = toy_network()
    outputs: list[torch.Tensor] = []
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _args, out: outputs.append(out))
    with BatchNormStatistics(network) as recorder:
        network(images)
        actual = recorder.last
    assert len(actual.layers) == len(outputs) == 2
    for layer, output in zip(actual.layers, outputs, strict=True):
        torch.testing.assert_close(layer.moments.mean, output.mean((2, 3)))
        torch.testing.assert_close(layer.moments.var, output.var((2, 3), correction=0))
    torch.testing.assert_close(actual.per_sample_unbiased.var[:, 8:], outputs[1].var((2, 3)))
    torch.testing.assert_close(actual.batch.var[:8], outputs[0].var((0, 2, 3), correction=0))
    assert actual.running.mean.shape == (20,)
    assert float(actual.constants.share.sum()) == pytest.approx(1.0)


def test_leaves_no_hook_after_an_error(images: torch.Tensor) -> None:
    network = toy_network()
    with pytest.raises(RuntimeError, match="inside"), BatchNormStatistics(network):
        network(images)
        raise RuntimeError("inside")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_each_pass_replaces_the_last(images: torch.Tensor) -> None:
    network = toy_network()
    with BatchNormStatistics(network) as recorder:
        network(images)
        first = recorder.last
        network(images + 1)
        assert len(recorder.last.layers) == 2
        assert not torch.equal(first.batch.mean, recorder.last.batch.mean)


def test_one_position_maps_have_biased_variance() -> None:
    network = toy_network(size=2)  # the stride-2 convolution leaves 1x1
    images = torch.randn((3, 3, 2, 2), generator=torch.Generator().manual_seed(1))
    with BatchNormStatistics(network) as recorder:
        network(images)
        actual = recorder.last.per_sample_unbiased
    assert torch.isfinite(actual.var).all()
    assert torch.equal(actual.var[:, 8:], torch.zeros(3, 12))
    assert (actual.var[:, :8] > 0).any()


def test_a_layer_called_twice_counts_twice() -> None:
    norm = nn.BatchNorm2d(3).eval()
    network = nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 1), norm)
    with BatchNormStatistics(network) as recorder, torch.no_grad():
        network(torch.ones(1, 3, 2, 2))
        assert [layer.name for layer in recorder.last.layers] == ["1", "1"]


def test_needs_running_statistics() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
    assert batchnorm_layers(network) == []
    with pytest.raises(Skip, match="BatchNorm"), BatchNormStatistics(network):
        pass


def test_records_timm_fused_layers() -> None:
    norm_act = pytest.importorskip("timm.layers").BatchNormAct2d
    network = nn.Sequential(nn.Conv2d(3, 4, 1), norm_act(4)).eval()
    with BatchNormStatistics(network) as recorder, torch.no_grad():
        network(torch.ones(1, 3, 2, 2))
        assert recorder.last.running.mean.shape == (4,)
