from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api import Budget, ModelCard, NonFiniteError, Precision, UsageError, budget_named
from dfqbench.synth import BatchNormStatistics, FixedSource, bns_distance_loss
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_network
from dfqbench_methods.dffg.plugin import KEPT, Dffg, DffgParams, save_points
from dfqbench_methods.dffg.synthesizer import SignGradient, accumulate, mean_norm, total_variation

SMALL = DffgParams(images=30, iterations=20)  # 6 chains
WHOLE = budget_named("paper")


def _make(params: DffgParams = SMALL, **context: Any) -> tuple[FixedSource, ToyContext]:
    ctx = ToyContext(**{"budget": WHOLE, **context})
    source = Dffg(params).synthesize(toy_network(), ctx)
    assert isinstance(source, FixedSource)
    return source, ctx


def _labels(source: FixedSource) -> Tensor:
    assert source.labels is not None
    return source.labels


@pytest.mark.parametrize("norm", ["l2", "mse"])
def test_loss_falls(norm: Any) -> None:
    _, ctx = _make(dataclasses.replace(SMALL, norm=norm))
    losses = [scalars["loss"] for scalars in ctx.scalars]
    assert len(losses) == 20
    assert losses[-1] < 0.7 * losses[0]


def test_priors_are_their_formulas() -> None:
    images = torch.randn((2, 3, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    neighbours: dict[tuple[int, int], float] = {(0, 1): 0.0, (1, 0): 0.0, (1, 1): 0.0, (1, -1): 0.0}
    for down, right in neighbours:
        for row in range(4 - down):
            for column in range(max(0, -right), 5 - max(0, right)):
                gap = images[:, :, row + down, column + right] - images[:, :, row, column]
                neighbours[down, right] += float((gap * gap).sum())
    assert float(total_variation(images)) == pytest.approx(sum(value**0.5 for value in neighbours.values()))
    sizes = [sum(value * value for value in image.flatten().tolist()) ** 0.5 for image in images]
    assert float(mean_norm(images)) == pytest.approx(sum(sizes) / 2)


def test_constant_images_have_a_finite_gradient() -> None:
    images = torch.zeros(2, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(total_variation(images) + mean_norm(images), images)
    assert torch.equal(gradient, torch.zeros(2, 3, 4, 4))


def test_momentum_divides_each_gradient_by_its_l1_norm() -> None:
    gradient = torch.randn((3, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    momentum = torch.randn((3, 2, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = [
        0.7 * momentum[n] + gradient[n] / sum(abs(v) for v in gradient[n].reshape(-1).tolist()) for n in range(3)
    ]
    torch.testing.assert_close(accumulate(momentum.clone(), gradient, 0.7), torch.stack(expected))
    still = accumulate(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), 1.0)
    assert torch.equal(still, torch.zeros(1, 1, 2, 2))


def test_steps_are_the_formula() -> None:
    params = DffgParams(iterations=10, bns_weight=0.7, ce_weight=0.5, tv_weight=0.3, l2_weight=0.2, momentum=0.6)
    network, ctx = toy_network(), ToyContext(budget=WHOLE)
    momentum = torch.zeros(4, 3, 8, 8)
    with BatchNormStatistics(network) as recorder:
        chains = SignGradient(network, ctx, params, recorder, 4)
        for _ in range(3):
            images = chains.images.clone().requires_grad_()
            logits = network(images)
            loss = 0.7 * bns_distance_loss(recorder.last) + 0.5 * F.cross_entropy(logits, chains.labels)
            loss = loss + 0.3 * total_variation(images) + 0.2 * mean_norm(images)
            (gradient,) = torch.autograd.grad(loss, images)
            momentum = 0.6 * momentum + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
            assert float(chains.step()) == pytest.approx(float(loss.detach()))
            assert torch.equal(chains.images, images.detach() - 0.1 * momentum.sign())


def test_every_step_has_the_same_size_and_nothing_is_clipped() -> None:
    params, network = DffgParams(iterations=40, step=1.0), toy_network()
    ctx = ToyContext(budget=WHOLE)
    with BatchNormStatistics(network) as recorder:
        chains = SignGradient(network, ctx, params, recorder, 4)
        for _ in range(40):
            before = chains.images.clone()
            chains.step()
            moved = (chains.images - before).abs()
            torch.testing.assert_close(moved, torch.ones_like(moved), atol=1e-5, rtol=0)
    assert float(chains.images.abs().max()) > max(map(abs, (*ctx.card.lowest, *ctx.card.highest)))


def test_clip_keeps_images_in_the_cards_limits() -> None:
    card = ModelCard((3, 8, 8), (0.5, 0.5, 0.5), (0.5, 0.25, 0.5), 4)
    source, _ = _make(dataclasses.replace(SMALL, step=1.0, clip=True), card=card)
    for c in range(3):
        assert float(source.images[:, c].min()) >= card.lowest[c]
        assert float(source.images[:, c].max()) <= card.highest[c]
    assert float(source.images[:, 1].abs().max()) == pytest.approx(2.0)


def test_a_chain_keeps_its_label_and_moves_towards_it() -> None:
    source, ctx = _make(DffgParams(images=300, iterations=40, bns_weight=0.0))  # 60 chains
    labels = _labels(source)
    assert labels.dtype == torch.int64
    assert set(labels.tolist()) == set(range(ctx.card.classes))
    assert torch.equal(labels, labels[:60].repeat(5))
    assert source.teacher_logits is not None
    assert (source.teacher_logits[:60].argmax(1) == labels[:60]).float().mean() > 0.95
    # Other images would agree with other labels.
    assert (source.teacher_logits[:60].argmax(1) == labels[:60].roll(1)).float().mean() < 0.6


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.MIXED_BFLOAT16])
def test_logits_are_the_teachers_on_each_kept_image(precision: Precision) -> None:
    source, _ = _make(precision=precision)
    torch.testing.assert_close(source.teacher_logits, toy_network()(source.images))


def test_last_iterates_come_first() -> None:
    source, _ = _make()
    last, _ = _make(dataclasses.replace(SMALL, images=6, keep="2X"))
    assert torch.equal(last.images, source.images[:6])
    assert torch.equal(_labels(last), _labels(source)[:6])
    for point, share in enumerate((0.9, 0.8, 0.7, 0.6), 1):
        kept, _ = _make(dataclasses.replace(SMALL, images=6, keep=(share,)))
        assert torch.equal(kept.images, source.images[6 * point : 6 * point + 6])


def test_order_with_several_batches() -> None:
    params = DffgParams(images=9, batch=2, iterations=10, keep=(0.5, 1.0))  # 5 chains in batches of 1, 2 and 2
    source, ctx = _make(params)
    assert ctx.steps[-1] == (30, 30)
    assert len(source) == 9  # the last chain's earlier image is cut
    first, _ = _make(dataclasses.replace(params, images=2, batch=1))
    assert torch.equal(source.images[[0, 5]], first.images)
    assert torch.equal(_labels(source)[[0, 5]], _labels(first)[:2])


@pytest.mark.parametrize(("keep", "chains"), [("2X", 60), ("4X", 30), ("8X", 15), ("10X", 12), ((0.5, 0.75, 1.0), 20)])
def test_every_setting_keeps_the_same_number_of_images(keep: Any, chains: int) -> None:
    source, ctx = _make(DffgParams(images=60, batch=16, iterations=20, keep=keep))
    assert len(source) == 60
    assert len(_labels(source).reshape(-1, chains).unique(dim=0)) == 1
    assert ctx.steps[-1][1] == 20 * -(-chains // 16)


def test_published_settings() -> None:
    points = {name: save_points(shares, 10) for name, shares in KEPT.items()}
    assert points == {"2X": [10], "4X": [6, 10], "8X": [6, 7, 9, 10], "10X": [6, 7, 8, 9, 10]}
    assert save_points(KEPT["10X"], 250) == [150, 175, 200, 225, 250]


def test_short_budget_keeps_shares_that_meet_once_and_as_many_images() -> None:
    source, ctx = _make(DffgParams(images=30), budget=budget_named("smoke"))  # 5 iterations: 3, 4, 4, 4 and 5
    assert ctx.steps[-1] == (5, 5)
    assert len(_labels(source).reshape(3, -1).unique(dim=0)) == 1
    assert len(source) == len(source.images.flatten(1).unique(dim=0)) == 30
    single, _ = _make(DffgParams(images=30), budget=Budget("one", Fraction(1), Fraction(1, 250)))
    assert len(single) == 30


def test_large_inputs_have_their_own_batch() -> None:
    params = DffgParams(images=4, batch=4, batch_large=2, iterations=1, keep="2X")
    assert _make(params)[1].steps[-1] == (1, 1)
    ctx = ToyContext(card=ModelCard((3, 72, 72), (0.5,) * 3, (0.5,) * 3, 4), budget=WHOLE)
    Dffg(params).synthesize(toy_network(size=72), ctx)
    assert ctx.steps[-1] == (2, 2)


@pytest.mark.parametrize("params", [SMALL, DffgParams(images=25, batch=2, iterations=10)])
def test_resumed_run_equals_uninterrupted_run(params: DffgParams) -> None:
    whole, ctx = _make(params, keep_states=True)
    for state in (ctx.saved[0], ctx.saved[len(ctx.saved) // 2], ctx.saved[-1]):
        continued, _ = _make(params, restored=state)
        for name, value in whole.state_dict().items():
            other = continued.state_dict()[name]
            assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": (0.5, 1.1)}, r"in \(0, 1\]"),
        ({"keep": (0.0, 1.0)}, r"in \(0, 1\]"),
        ({"keep": ()}, r"in \(0, 1\]"),
        ({"keep": (0.5, 0.5)}, "names 2 iterates"),
        ({"iterations": 4}, "names 5 iterates, but 4 iterations have only 3"),
        ({"bns_weight": 0.0, "ce_weight": 0.0}, "no loss"),
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
