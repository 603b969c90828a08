from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from dfqbench.synth import BatchNormStatistics, GeneratorSource, deep_start
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_card, toy_network
from dfqbench_methods.clusterq.plugin import Clusterq, ClusterqParams
from dfqbench_methods.clusterq.synthesizer import CentroidTerm, released_loss

EARLY = ClusterqParams(cluster_start=0, latent_few_classes=8, augment_share=0.0)


def _source(params: ClusterqParams = EARLY, **context: object) -> GeneratorSource:
    ctx = ToyContext(**context)  # type: ignore[arg-type]
    source = Clusterq(params).synthesize(toy_network(), ctx)
    assert isinstance(source, GeneratorSource)
    return source


def _centroids(source: GeneratorSource) -> CentroidTerm:
    return next(term for term in source.terms if isinstance(term, CentroidTerm))


@pytest.mark.parametrize(("mode", "names"), [("paper", 3), ("released", 3), ("none", 2)])
def test_modes_choose_the_terms(mode: Any, names: int) -> None:
    params = dataclasses.replace(EARLY, mode=mode)
    source = _source(params)
    assert [term.name for term in source.terms] == ["ce", "bns", "cluster"][:names]
    for _ in range(4):
        assert torch.isfinite(source.train_step(8).images).all()


def test_cluster_weight_0_equals_mode_none() -> None:
    off = dataclasses.replace(EARLY, cluster_weight=0.0)
    none = dataclasses.replace(EARLY, mode="none")
    first, second = _source(off), _source(none)
    for _ in range(3):
        assert torch.equal(first.train_step(4).images, second.train_step(4).images)
    paper = _source()
    for _ in range(3):
        paper.train_step(4)
    assert not torch.equal(paper.train_step(4).images, first.train_step(4).images)


def test_centroids_come_from_correct_samples_after_the_start() -> None:
    # Under `smoke` an epoch is one step; epoch 24 begins after 10 range steps and one more.
    source = _source(dataclasses.replace(EARLY, cluster_start=24))
    term = _centroids(source)
    assert term.start == 11
    teacher = toy_network()
    for step in range(13):
        batch = source.train_step(16)
        if step < term.start:
            assert term.state_dict() == {}
    assert batch.labels is not None
    assert batch.teacher_logits is not None
    known = term.state_dict()["known"]
    hit = batch.teacher_logits.argmax(1) == batch.labels
    assert known[batch.labels[hit]].all()
    with BatchNormStatistics(teacher) as recorder:
        teacher(batch.images)
        layers = recorder.last.layers
        width = sum(layer.running.mean.shape[0] for layer in layers[deep_start(len(layers)) :])
    assert term.state_dict()["mean"].shape == (4, width)


def test_state_holds_the_centroids() -> None:
    source, b = _source(), _source(root_seed=5)
    for _ in range(3):
        source.train_step(8)
    b.load_state_dict(copy.deepcopy(source.state_dict()))
    for _ in range(3):
        assert torch.equal(source.train_step(8).images, b.train_step(8).images)


def test_released_loss_is_mostly_the_last_layers_gap() -> None:
    layers = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(6)]
    network = nn.Sequential(*layers).eval().double()
    images = torch.randn((4, 3, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    params = dataclasses.replace(EARLY, diversity_weight=0.0)
    expected, x, count = 0.0, images, 5  # layers 1 to 5 of 6 are deep
    with torch.no_grad():
        for index, layer in enumerate(layers):
            y = layer[0](x)
            gap = y.mean((0, 2, 3)).square().mean() + (y.var((0, 2, 3), correction=0) - 1).square().mean()
            expected += float(gap) * (0.0 if index == 0 else 1 / count ** (6 - index))
            x = layer(x)
    with BatchNormStatistics(network) as recorder, torch.no_grad():
        network(images)
        random = torch.Generator().manual_seed(0)
        assert float(released_loss(recorder.last, params, random)) == pytest.approx(expected)
        with_noise = float(released_loss(recorder.last, EARLY, random))
        assert 0 < with_noise - expected < 0.1 * (0.03**2 + 0.05**2)


@pytest.mark.parametrize(("classes", "latent"), [(10, 10), (11, 100)])
def test_latent_depends_on_classes(classes: int, latent: int) -> None:
    ctx = ToyContext(card=toy_card(classes=classes))
    source = Clusterq(ClusterqParams()).synthesize(toy_network(classes=classes), ctx)
    assert isinstance(source, GeneratorSource)
    assert source.generator.latent == latent


def test_misclassified_samples_count_where_asked() -> None:
    wrong = dataclasses.replace(EARLY, correct_only=False)
    source = _source(wrong)
    batch = source.train_step(32)
    assert batch.labels is not None
    assert _centroids(source).state_dict()["known"].tolist() == [bool((batch.labels == c).any()) for c in range(4)]
