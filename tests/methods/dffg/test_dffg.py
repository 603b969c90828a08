from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from dfqbench.api import ModelCard, NonFiniteError, UsageError
from dfqbench.synth import FixedSource
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_network
from dfqbench_methods.dffg.plugin import Dffg, DffgParams
from dfqbench_methods.dffg.synthesizer import accumulate, step_size

SMALL = DffgParams(chains=6, batch=6, iterations=1000)  # 20 iterations under `smoke`


def _make(params: DffgParams = SMALL, **context: Any) -> tuple[FixedSource, ToyContext]:
    ctx = ToyContext(**context)
    source = Dffg(params).synthesize(toy_network(), ctx)
    assert isinstance(source, FixedSource)
    return source, ctx


@pytest.mark.parametrize("statistics", ["sample", "batch"])
@pytest.mark.parametrize("variability", ["pixel", "none"])
def test_loss_falls(statistics: Any, variability: Any) -> None:
    _, ctx = _make(dataclasses.replace(SMALL, statistics=statistics, variability=variability))
    losses = [scalars["loss"] for scalars in ctx.scalars]
    assert len(losses) == 20
    assert losses[-1] < 0.6 * losses[0]


def test_last_iterates_come_first_and_logits_belong_to_them() -> None:
    source, _ = _make()
    assert len(source) == 6 * 5
    torch.testing.assert_close(source.teacher_logits, toy_network()(source.images))
    alone, _ = _make(dataclasses.replace(SMALL, keep=()))
    assert len(alone) == 6
    assert torch.equal(alone.images, source.images[:6])
    gaps = [float((source.images[:6] - source.images[6 * i : 6 * i + 6]).abs().mean()) for i in range(1, 5)]
    assert gaps == sorted(gaps)  # latest first


def test_order_with_several_batches() -> None:
    source, ctx = _make(DffgParams(chains=5, batch=2, iterations=1000, keep=(0.5,)))
    assert len(source) == 10
    assert ctx.steps[-1] == (60, 60)
    first, _ = _make(DffgParams(chains=2, batch=2, iterations=1000, keep=(0.5,)))
    assert torch.equal(source.images[:2], first.images[:2])
    assert torch.equal(source.images[5:7], first.images[2:])


def test_momentum_is_mi_fgsms() -> None:
    gradient = torch.randn((3, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    momentum = torch.randn((3, 2, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = [
        0.7 * momentum[n] + gradient[n] / sum(abs(v) for v in gradient[n].reshape(-1).tolist()) for n in range(3)
    ]
    torch.testing.assert_close(accumulate(momentum.clone(), gradient, 0.7), torch.stack(expected))
    still = accumulate(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), 1.0)
    assert torch.equal(still, torch.zeros(1, 1, 2, 2))


def test_steps_shrink_along_a_cosine() -> None:
    sizes = [step_size(step, 11, 0.1, 0.01) for step in (0, 2, 5, 10)]
    assert sizes == pytest.approx([0.1, 0.01 + 0.09 * (1 + math.cos(math.pi / 5)) / 2, 0.055, 0.01])
    assert step_size(0, 1, 0.1, 0.01) == pytest.approx(0.1)


def test_images_stay_in_the_cards_limits() -> None:
    card = ModelCard((3, 8, 8), (0.5, 0.5, 0.5), (0.5, 0.25, 0.5), 4)
    source, _ = _make(dataclasses.replace(SMALL, step=1.0, last_step=1.0), card=card)
    for c in range(3):
        assert float(source.images[:6, c].min()) >= card.lowest[c]
        assert float(source.images[:6, c].max()) <= card.highest[c]
    assert float(source.images[:6, 1].abs().max()) == pytest.approx(2.0)


@pytest.mark.parametrize("variability", ["pixel", "layers"])
def test_variability_makes_chains_differ(variability: Any) -> None:
    plain, _ = _make(dataclasses.replace(SMALL, variability="none"))
    varied, _ = _make(dataclasses.replace(SMALL, variability=variability))
    assert not torch.equal(plain.images[:6], varied.images[:6])


@pytest.mark.parametrize("params", [SMALL, DffgParams(chains=5, batch=2, iterations=500)])
def test_resumed_run_equals_uninterrupted_run(params: DffgParams) -> None:
    whole, ctx = _make(params, keep_states=True)
    for state in (ctx.saved[0], ctx.saved[len(ctx.saved) // 2], ctx.saved[-1]):
        continued, _ = _make(params, restored=state)
        assert torch.equal(whole.images, continued.images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": (0.5, 1.0)}, "outside"),
        ({"layer_drop": 1.0}, "no layer"),
        ({"statistics": "batch", "variability": "layers"}, "batch"),
    ],
)
def test_bad_parameters(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_nan_raises() -> None:
    broken = toy_network()
    assert isinstance(broken[1], nn.BatchNorm2d)
    broken[1].running_mean.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(NonFiniteError):
        Dffg(SMALL).synthesize(broken, ToyContext())
