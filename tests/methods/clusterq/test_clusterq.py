from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfqbench.api import Precision
from dfqbench.synth import (
    BatchNormStatistics,
    Condition,
    DeepStatistics,
    GeneratorPass,
    GeneratorSource,
    LossTerm,
    deep_start,
)
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_card, toy_images, toy_network
from dfqbench_methods.clusterq.plugin import Clusterq, ClusterqParams
from dfqbench_methods.clusterq.released import diversity_term, released_loss
from dfqbench_methods.clusterq.synthesizer import CentroidTerm
from dfqbench_methods.gdfq.plugin import Gdfq

CLASSES = 4
EARLY = ClusterqParams(centroid_start=0, latent=8)
SINGLE = replace(EARLY, grouping="single_class")
EVERY_SAMPLE = replace(EARLY, correct_only=False)
"""For labels that are not those of the toy network."""


def _source(params: ClusterqParams = EARLY, **context: object) -> GeneratorSource:
    source = Clusterq(params).synthesize(toy_network(), ToyContext(**context))  # type: ignore[arg-type]
    assert isinstance(source, GeneratorSource)
    return source


def _term(source: GeneratorSource) -> CentroidTerm:
    return next(term for term in source.terms if isinstance(term, CentroidTerm))


@contextmanager
def _view(labels: Tensor, images: Tensor | None = None, *, seed: int = 0) -> Iterator[GeneratorPass]:
    """A pass of the toy network over images that require a gradient; further passes make the same images."""
    network = toy_network()
    images = toy_images(len(labels)) if images is None else images
    images = images.clone().requires_grad_()
    with BatchNormStatistics(network) as recorder:
        yield GeneratorPass(
            images=images,
            condition=Condition(torch.zeros(len(labels), 8), labels),
            logits=network(images),
            bn_recorder=recorder,
            map_recorder=None,
            teacher=network,
            run_generator=lambda _: images,
            run_teacher=network,
            student=None,
            random=torch.Generator().manual_seed(seed),
        )


def _labels(images: Tensor) -> Tensor:
    return torch.arange(len(images)) % CLASSES


def _first(params: ClusterqParams) -> CentroidTerm:
    """The term of `EVERY_SAMPLE` with other parameters after one step: its centroids are those of `toy_images`."""
    term = CentroidTerm(ToyContext(), params)
    with _view(_labels(toy_images(32))) as view:
        term.observe(view, 0)
    assert term.state_dict()["known"].all()
    return term


@pytest.mark.parametrize(("mode", "names"), [("paper", 3), ("released", 3), ("none", 2)])
def test_modes_choose_the_terms(mode: Any, names: int) -> None:
    source = _source(replace(EARLY, mode=mode))
    assert [term.name for term in source.terms] == ["ce", "bns", "cluster"][:names]
    for _ in range(4):
        assert torch.isfinite(source.train_step(8).images).all()


def test_mode_none_has_gdfqs_losses() -> None:
    ctx = ToyContext()
    gdfq = Gdfq(Gdfq.params_type()).synthesize(toy_network(), ctx)
    assert isinstance(gdfq, GeneratorSource)
    images = toy_images(6)

    def values(source: GeneratorSource) -> list[tuple[str, float, int, float]]:
        with _view(torch.arange(6) % CLASSES, images) as view:
            return [(term.name, term.weight, term.start, float(term.loss(view).detach())) for term in source.terms]

    assert values(_source(ClusterqParams(mode="none"))) == values(gdfq)


@pytest.mark.parametrize("off", [{"sfda_weight": 0.0, "icv_weight": 0.0}, {"mode": "released", "sfda_weight": 0.0}])
def test_weights_of_0_equal_mode_none(off: dict[str, Any]) -> None:
    first, second, paper = _source(replace(EARLY, **off)), _source(replace(EARLY, mode="none")), _source()
    for _ in range(3):
        images = first.train_step(32).images
        assert torch.equal(images, second.train_step(32).images)
        paper.train_step(32)
    assert not torch.equal(paper.sample(4).images, first.sample(4).images)


@pytest.mark.parametrize(
    ("classes", "params", "single"),
    [
        (25, {"batch": 200}, False),
        (26, {"batch": 200}, True),
        (26, {"grouping": "batch"}, False),
        (10, {}, False),
        (10, {"batch_few_classes": 79}, True),
        (2, {"grouping": "single_class"}, True),
    ],
)
def test_auto_groups_the_batch_where_classes_have_eight_samples(
    classes: int, params: dict[str, Any], single: bool
) -> None:
    term = CentroidTerm(ToyContext(card=toy_card(classes=classes)), ClusterqParams(**params))
    assert term._single_class == single


def test_large_inputs_have_single_class_batches() -> None:
    assert CentroidTerm(ToyContext(card=toy_card(classes=3, size=96)), ClusterqParams())._single_class
    assert not CentroidTerm(ToyContext(card=toy_card(classes=2, size=96)), ClusterqParams())._single_class


def test_icv_is_sfda_and_a_constant_in_expectation() -> None:
    sfda, icv = (_first(replace(EVERY_SAMPLE, sfda_weight=weight, icv_weight=1 - weight)) for weight in (1.0, 0.0))
    for images in (toy_images(32), toy_images(32, seed=3), 3 * toy_images(32, seed=4)):
        with _view(_labels(images), images) as view, torch.no_grad():
            perturbed = torch.stack([icv.loss(view) for _ in range(1000)]).mean()
            assert float(perturbed - sfda.loss(view)) == pytest.approx(0.5**2 + 1.0**2, abs=0.1)


def test_loss_adds_sfda_and_icv() -> None:
    images = toy_images(32, seed=3)
    values = {}
    for weights in ((0.9, 0.6), (1.0, 0.0), (0.0, 1.0)):
        term = _first(replace(EVERY_SAMPLE, sfda_weight=weights[0], icv_weight=weights[1]))
        with _view(_labels(images), images) as view:
            values[weights] = float(term.loss(view).detach())
    assert values[0.9, 0.6] == pytest.approx(0.9 * values[1.0, 0.0] + 0.6 * values[0.0, 1.0])


def _gradient(params: ClusterqParams) -> Tensor:
    """The gradient in images whose groups are at their centroids."""
    term = _first(params)
    with _view(_labels(toy_images(32))) as view:
        (gradient,) = torch.autograd.grad(term.loss(view), view.images)
    return gradient


def test_perturbation_has_a_gradient_and_the_released_one_has_none() -> None:
    assert not _gradient(replace(EVERY_SAMPLE, icv_weight=0.0)).any()
    gradient = _gradient(EVERY_SAMPLE)
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).float().mean() > 0.9
    statistic = torch.ones(50, requires_grad=True)
    term = diversity_term(statistic, 0.03, torch.Generator().manual_seed(0))
    assert 0 < float(term.detach()) < 0.03**2
    (released,) = torch.autograd.grad(term, statistic)
    assert torch.equal(released, torch.zeros(50))


@pytest.mark.parametrize("moment", ["std", "var"])
def test_relative_noise_is_in_units_of_the_running_statistics(moment: Any) -> None:
    relative = replace(EVERY_SAMPLE, moment=moment, noise_scale="relative", sfda_weight=0.0, icv_weight=1.0)
    term = _first(relative)
    with _view(_labels(toy_images(32))) as view, torch.no_grad():
        deep = DeepStatistics.of(view.statistics)
        spread = deep.running.var.sqrt() if moment == "std" else deep.running.var
        expected = (deep.share * (0.25 * deep.running.var + spread.square())).sum()
        # At the centroids only the perturbation is left.
        value = torch.stack([term.loss(view) for _ in range(1000)]).mean()
    assert float(value) == pytest.approx(float(expected), rel=0.1)


def test_classes_are_grouped_and_misclassified_samples_dropped() -> None:
    images = toy_images(32)
    labels = _labels(images)
    with torch.no_grad():
        correct = toy_network()(images).argmax(1) == labels
    assert 0 < int(correct.sum()) < 32
    for only in (True, False):
        term = CentroidTerm(ToyContext(), replace(EARLY, correct_only=only))
        with _view(labels, images) as view:
            term.observe(view, 0)
            samples = DeepStatistics.of(view.statistics).moments
        state = term.state_dict()
        for label in range(CLASSES):
            members = (labels == label) & (correct if only else torch.ones_like(correct))
            assert bool(state["known"][label]) == bool(members.any())
            if members.any():
                mean, var = samples.mean[members].mean(0), samples.var[members].mean(0)
                var = var + samples.mean[members].var(0, correction=0)
                torch.testing.assert_close(state["mean"][label], mean)
                torch.testing.assert_close(state["spread"][label], (var + 1e-6).sqrt())


@pytest.mark.parametrize("every", ["step", "epoch"])
def test_a_class_without_samples_keeps_its_centroid_and_does_not_count(every: Any) -> None:
    # Under `smoke` an epoch is one step.
    term = CentroidTerm(ToyContext(), replace(EVERY_SAMPLE, centroid_every=every))
    images = toy_images(8)

    def step(number: int, labels: Tensor) -> dict[str, Tensor]:
        with _view(labels, images) as view:
            term.loss(view)
            term.observe(view, number)
        term.finish(number)
        return {name: value.clone() for name, value in term.state_dict().items()}

    first = step(0, torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]))
    assert first["known"].tolist() == [True, True, False, False]
    second = step(1, torch.tensor([0, 0, 0, 0, 2, 2, 2, 2]))
    assert second["known"].tolist() == [True, True, True, False]
    assert torch.equal(second["mean"][1], first["mean"][1])
    assert not torch.equal(second["mean"][0], first["mean"][0])
    with _view(torch.full((8,), 3), images) as view:
        value = term.loss(view)
        (gradient,) = torch.autograd.grad(value, view.images)
    assert float(value.detach()) == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_no_correct_sample_leaves_gdfqs_losses() -> None:
    network = toy_network()
    last = network[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([1.0, 0.0, 0.0, 0.0])  # class 0, whatever the image
    source = Clusterq(SINGLE).synthesize(network, ToyContext())
    assert isinstance(source, GeneratorSource)
    for _ in range(20):
        assert torch.isfinite(source.train_step(8).images).all()
    assert _term(source).state_dict()["known"].tolist() == [True, False, False, False]


def test_single_class_batches_have_one_random_class() -> None:
    source = _source(replace(EVERY_SAMPLE, grouping="single_class"))
    seen: set[int] = set()
    for _ in range(12):
        known = _term(source).state_dict().get("known", torch.zeros(CLASSES, dtype=torch.bool)).clone()
        batch = source.train_step(8)
        assert batch.labels is not None
        assert len(batch.labels.unique()) > 1  # the batch for the student has all classes
        assert len(batch.images) == 8
        seen |= set(_term(source).state_dict()["known"].nonzero().flatten().tolist())
        assert int((_term(source).state_dict()["known"] & ~known).sum()) <= 1
    assert len(seen) > 1


def test_single_class_pass_is_shared_and_keeps_the_batchs_statistics() -> None:
    made = []
    with _view(torch.arange(6) % CLASSES) as view:

        def run_generator(condition: Condition) -> Tensor:
            made.append(condition)
            return 2 * view.images

        view.run_generator = run_generator
        before = view.statistics.per_sample.mean
        single = view.single_class
        assert view.single_class is single
        assert torch.equal(view.statistics.per_sample.mean, before)
        assert not torch.equal(single.statistics.per_sample.mean, before)
    (condition,) = made
    assert condition.labels.shape == (6,)
    assert len(condition.labels.unique()) == 1
    assert not torch.equal(condition.noise, view.condition.noise)


@pytest.mark.parametrize(
    "params",
    [EARLY, SINGLE, replace(EARLY, centroid_every="epoch"), replace(EARLY, mode="released")],
    ids=["batch", "single_class", "epoch", "released"],
)
def test_resumed_equals_uninterrupted(params: ClusterqParams) -> None:
    source, resumed = _source(params), _source(params, root_seed=5)
    for _ in range(3):
        source.train_step(8)
    resumed.load_state_dict(copy.deepcopy(source.state_dict()))
    for _ in range(3):
        assert torch.equal(source.train_step(8).images, resumed.train_step(8).images)


def test_centroids_begin_at_their_epoch() -> None:
    # Under `smoke` an epoch is one step; epoch 24 begins after 10 range steps and one more.
    source = _source(replace(EARLY, centroid_start=24))
    term = _term(source)
    assert term.start == 11
    for _ in range(term.start):
        source.train_step(16)
        assert term.state_dict() == {}
    source.train_step(16)
    assert term.state_dict()["known"].any()


def test_all_terms_are_capturable() -> None:
    for params in (EARLY, SINGLE, replace(EARLY, mode="released"), replace(EARLY, centroid_every="epoch")):
        assert all(term.capturable for term in _source(params).terms)


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.MIXED_BFLOAT16])
@pytest.mark.parametrize("grouping", ["batch", "single_class"])
def test_groups_come_closer_to_centroids_that_stay(grouping: Any, precision: Precision) -> None:
    params = replace(EVERY_SAMPLE, grouping=grouping, sfda_weight=1.0, icv_weight=0.0, centroid_rate=1e-9)
    source = _source(replace(params, ce_weight=0.0, bns_weight=0.0), precision=precision)
    term = _term(source)
    term.load_state_dict(_first(EVERY_SAMPLE).state_dict())
    values = _recorded(term)
    for _ in range(50):
        source.train_step(32)
    assert all(torch.isfinite(value) for value in values)
    assert torch.stack(values[-10:]).mean() < 0.7 * torch.stack(values[:10]).mean()


def _recorded(term: LossTerm) -> list[Tensor]:
    """Record the term's values from now on."""
    values: list[Tensor] = []
    plain = term.loss

    def loss(view: GeneratorPass) -> Tensor:
        value = plain(view)
        values.append(value.detach())
        return value

    term.loss = loss  # type: ignore[method-assign]
    return values


def test_released_loss_is_mostly_the_last_layers_gap() -> None:
    layers = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(6)]
    network = nn.Sequential(*layers).eval().double()
    images = torch.randn((4, 3, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    params = replace(EARLY, released_diversity_weight=0.0)
    expected, x, count = 0.0, images, 6 - deep_start(6)
    with torch.no_grad():
        for index, layer in enumerate(layers):
            y = layer[0](x)
            gap = F.mse_loss(y.mean((0, 2, 3)), torch.zeros(3).double())
            gap = gap + F.mse_loss(y.var((0, 2, 3), correction=0), torch.ones(3).double())
            expected += 0.0 if index < deep_start(6) else float(gap) / count ** (6 - index)
            x = layer(x)
    with BatchNormStatistics(network) as recorder, torch.no_grad():
        network(images)
        random = torch.Generator().manual_seed(0)
        assert float(released_loss(recorder.last, params, random)) == pytest.approx(expected)
        with_noise = float(released_loss(recorder.last, EARLY, random))
        assert 0 < with_noise - expected < 0.1 * (0.03**2 + 0.05**2)
