from __future__ import annotations

import dataclasses
import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dfqbench.api import Skip, budget_named
from dfqbench.synth import (
    BatchNormStatistics,
    FeatureMaps,
    GeneratorSource,
    attention_centre,
    attention_consistency_loss,
    batch_statistics,
    bns_loss,
)
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_card, toy_network
from dfqbench_methods.acq.plugin import Acq, AcqParams
from dfqbench_methods.acq.synthesizer import CentreTerm

DEFAULTS = AcqParams(latent=8)
PARAMS = dataclasses.replace(DEFAULTS, attention_start=0, pair_margin=0.0)
"""With all losses on from the first step."""
OFF: dict[str, Any] = {
    "ce_weight": 0.0,
    "bns_weight": 0.0,
    "centre_weight": 0.0,
    "pair_weight": 0.0,
    "consistency_weight": 0.0,
}


def _source(params: AcqParams = PARAMS, seed: int = 0, budget: str = "smoke") -> GeneratorSource:
    source = Acq(params).synthesize(toy_network(), ToyContext(root_seed=seed, budget=budget_named(budget)))
    assert isinstance(source, GeneratorSource)
    return source


def _only(**weights: float) -> AcqParams:
    return dataclasses.replace(PARAMS, **OFF | weights)


@pytest.mark.parametrize("name", ["ce", "bns", "centre", "pair", "consistency"])
def test_each_loss_trains_alone(name: str) -> None:
    source = _source(_only(**{f"{name}_weight": 1.0}))
    assert [term.name for term in source.terms] == [name]
    before = [p.detach().clone() for p in source.generator.parameters()]
    for _ in range(2):
        source.train_step(4)
    assert any(not torch.equal(a, b) for a, b in zip(before, source.generator.parameters(), strict=True))


def test_the_teachers_attention_follows_the_centre() -> None:
    teacher = toy_network()
    anywhere = dataclasses.replace(
        _only(centre_weight=1.0), centre_condition="uniform", centre_uniform=0.7, centre_tolerance=0.0
    )
    source = _source(anywhere, budget="short")

    def distance() -> float:
        condition = source._draw(256, torch.Generator().manual_seed(7))
        assert condition.extra is not None
        with torch.no_grad(), FeatureMaps(teacher) as recorder:
            teacher(source.generator(condition.noise, condition.labels, condition.extra))
            return float((attention_centre(recorder.last.attention[-1]) - condition.extra).square().sum(1).mean())

    before = distance()
    for _ in range(150):
        source.train_step(32)
    assert distance() < 0.75 * before


def test_attention_losses_start_with_the_student() -> None:
    source = _source(dataclasses.replace(DEFAULTS, ce_weight=0.0, bns_weight=0.0, centre_tolerance=0.0))
    before = [p.detach().clone() for p in source.generator.parameters()]

    def changed() -> bool:
        return any(not torch.equal(a, b) for a, b in zip(before, source.generator.parameters(), strict=True))

    for _ in range(10):  # the range phase of `smoke`
        source.train_step(4)
    assert not changed()
    source.train_step(4)
    assert changed()


def _centres(source: GeneratorSource) -> list[Tensor]:
    """Return the list to which the centres of all later conditions are added."""
    centres: list[Tensor] = []
    source.generator.register_forward_pre_hook(lambda _module, args: centres.append(args[2]))
    return centres


def test_conditions_are_uniform_first_and_then_around_the_generators_own_centres() -> None:
    source = _source(DEFAULTS)
    centres = _centres(source)
    for _ in range(30):
        source.train_step(64)
        source.sample(64)
    early, late = torch.cat(centres[:19]), torch.cat(centres[19:])
    assert float(early.abs().max()) == pytest.approx(0.3, abs=0.01)
    assert float(early.std()) == pytest.approx(0.6 / 12**0.5, abs=0.01)
    assert float(late.abs().max()) <= 0.7
    own = next(term for term in source.terms if isinstance(term, CentreTerm))._own
    for drawn in (torch.cat(centres[20::2]), torch.cat(centres[19::2])):  # of training and of `sample`
        torch.testing.assert_close(drawn.mean(0), own.mean, atol=0.03, rtol=0)
        torch.testing.assert_close(drawn.std(0), 1.5 * own.std, atol=0.01, rtol=0.1)


def _term(**params: Any) -> CentreTerm:
    return CentreTerm(dataclasses.replace(DEFAULTS, **params), 0, torch.device("cpu"))


def test_the_condition_follows_a_known_sequence() -> None:
    term = _term(centre_decay=0.5)
    for step, positions in enumerate([(0, 0), (0, 1), (1, 1)]):  # two maps of one row: all attention at a position
        attention = torch.eye(2)[list(positions)][:, None]  # (2, 1, 2); centres x = -1 or 1, y = 0
        term.observe(SimpleNamespace(maps=SimpleNamespace(attention=[attention])), step)  # type: ignore[arg-type]
        term.finish(step)
    # Weights 1, 2 and 4 sevenths; means -1, 0 and 1; mean square 1.
    mean, std = 3 / 7, (1 - (3 / 7) ** 2) ** 0.5
    drawn = term.draw_centres(1000, torch.Generator().manual_seed(5))
    u = torch.randn((1000, 2), generator=torch.Generator().manual_seed(5))
    expected = torch.stack((mean + 1.5 * std * u[:, 0], torch.zeros(1000)), 1).clamp(-0.7, 0.7)
    torch.testing.assert_close(drawn, expected)
    assert float(drawn.max()) == pytest.approx(0.7)


def test_without_the_centre_loss_or_on_request_conditions_stay_uniform() -> None:
    for params in (
        dataclasses.replace(PARAMS, centre_weight=0.0),
        dataclasses.replace(PARAMS, centre_condition="uniform"),
    ):
        source = _source(params)
        centres = _centres(source)
        for _ in range(4):
            source.train_step(256)
        assert float(torch.cat(centres).abs().max()) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("steps", [2, 10, 13])
def test_resume_restores_the_condition(steps: int) -> None:
    first, second, buffer = _source(DEFAULTS), _source(DEFAULTS, seed=9), io.BytesIO()
    for _ in range(steps):
        first.train_step(6)
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    centres = _centres(first), _centres(second)
    for _ in range(12):
        assert torch.equal(first.train_step(6).images, second.train_step(6).images)
    assert torch.equal(first.sample(6).images, second.sample(6).images)
    assert all(torch.equal(a, b) for a, b in zip(*centres, strict=True))


def test_a_network_with_maps_of_one_position_is_skipped() -> None:
    source = Acq(DEFAULTS).synthesize(toy_network(size=1), ToyContext(card=toy_card(size=1)))
    assert isinstance(source, GeneratorSource)
    with pytest.raises(Skip, match="no feature map of more than one position"):
        source.train_step(4)


def test_maps_of_one_position_are_no_stage() -> None:
    source = Acq(PARAMS).synthesize(toy_network(size=2), ToyContext(card=toy_card(size=2)))
    assert isinstance(source, GeneratorSource)
    centres: list[Tensor] = []
    term = next(term for term in source.terms if isinstance(term, CentreTerm))
    term.observe = lambda view, step: centres.append(view.maps.attention[-1])  # type: ignore[method-assign] # noqa: ARG005
    source.train_step(4)
    assert centres[0].shape == (4, 2, 2)


def test_consistency_compares_the_two_modes() -> None:
    teacher = toy_network()
    values: list[float] = []
    source = Acq(PARAMS).synthesize(teacher, ToyContext())
    assert isinstance(source, GeneratorSource)
    term = next(term for term in source.terms if term.name == "consistency")
    measured = term.loss
    term.loss = lambda view: values.append(float((actual := measured(view)).detach())) or actual  # type: ignore
    batch = source.train_step(6)
    with FeatureMaps(teacher) as recorder:
        teacher(batch.images)
        own = recorder.last.attention
        with batch_statistics(teacher):
            teacher(batch.images)
        b = recorder.last.attention
    assert values == [pytest.approx(float(attention_consistency_loss(own, b)), rel=1e-4)]
    assert values[0] > 0


def test_bns_both_counts_the_second_pass() -> None:
    teacher = toy_network()
    params = dataclasses.replace(PARAMS, bns_both=True)
    source = Acq(params).synthesize(teacher, ToyContext())
    assert isinstance(source, GeneratorSource)
    term = next(term for term in source.terms if term.name == "bns_second")
    assert term.weight == PARAMS.bns_weight
    values: list[float] = []
    measured = term.loss
    term.loss = lambda view: values.append(float((actual := measured(view)).detach())) or actual  # type: ignore
    passes: list[object] = []
    teacher.register_forward_hook(lambda *_: passes.append(None))
    batch = source.train_step(6)
    assert len(passes) == 2  # the second one serves both losses
    with BatchNormStatistics(teacher) as recorder, batch_statistics(teacher):
        teacher(batch.images)
        assert values == [pytest.approx(float(bns_loss(recorder.last)), rel=1e-4)]


def test_second_pass_leaves_the_first_ones_data() -> None:
    # The BatchNorm loss is that of the first pass, also if it is read after the second one.
    source = _source()
    seen: list[tuple[float, float]] = []
    term = next(term for term in source.terms if term.name == "consistency")
    term.observe = lambda view, step: seen.append(  # type: ignore[method-assign] # noqa: ARG005
        (float(bns_loss(view.statistics).detach()), float(bns_loss(view.second_pass.statistics).detach()))
    )
    batch = source.train_step(6)
    teacher = toy_network()
    with BatchNormStatistics(teacher) as recorder:
        teacher(batch.images)
        first = float(bns_loss(recorder.last))
    assert seen[0][0] == pytest.approx(first, rel=1e-4)
    assert seen[0][1] != pytest.approx(first, rel=1e-2)


def test_batch_of_one_has_no_pair() -> None:
    batch = _source(dataclasses.replace(PARAMS, bns_both=True)).train_step(1)
    assert torch.isfinite(batch.images).all()
