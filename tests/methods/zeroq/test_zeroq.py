from __future__ import annotations

import dataclasses

import pytest
import torch

from dfqbench.api import InputStats, ModelCard, NonFiniteError
from dfqbench.synth import FixedSource
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_network
from dfqbench_methods.zeroq.plugin import ZeroQ, ZeroQParams
from dfqbench_methods.zeroq.synthesizer import initial_noise

SMALL = ZeroQParams(images=6, batch=6, iterations=2000)  # 40 iterations under `smoke`


def _distill(params: ZeroQParams = SMALL, **context: object) -> tuple[torch.Tensor, ToyContext]:
    ctx = ToyContext(**context)  # type: ignore[arg-type]
    source = ZeroQ(params).synthesize(toy_network(), ctx)
    assert isinstance(source, FixedSource)
    return source.images, ctx


def test_loss_falls() -> None:
    images, ctx = _distill()
    losses = [scalars["loss"] for scalars in ctx.scalars]
    assert losses[-1] < 0.3 * losses[0]
    assert images.shape == (6, 3, 8, 8)
    assert not images.requires_grad
    assert ctx.steps[-1] == (40, 40)


@pytest.mark.parametrize("images", [6, 7, 1])
def test_resumed_run_equals_uninterrupted_run(images: int) -> None:
    params = ZeroQParams(images=images, batch=3, iterations=500)
    whole, ctx = _distill(params, keep_states=True)
    for state in (ctx.saved[0], ctx.saved[len(ctx.saved) // 2], ctx.saved[-1]):
        continued, _ = _distill(params, restored=state)
        assert torch.equal(whole, continued)
    assert torch.isfinite(whole).all()


def test_source_has_teacher_logits() -> None:
    source = ZeroQ(SMALL).synthesize(toy_network(), ToyContext())
    batch = source.sample(6)
    assert batch.labels is None
    torch.testing.assert_close(batch.teacher_logits, toy_network()(batch.images))


def test_batches_differ_and_are_cut_to_size() -> None:
    images, ctx = _distill(ZeroQParams(images=7, batch=3, iterations=500))
    assert len(images) == 7
    assert ctx.steps[-1] == (30, 30)
    assert not torch.equal(images[:3], images[3:6])


@pytest.mark.parametrize(("variant", "std"), [("released", 0.0136), ("intended", 1.0)])
def test_initial_noise(variant: str, std: float) -> None:
    noise = initial_noise((64, 3, 32, 32), variant, torch.Generator().manual_seed(0))
    assert float(noise.std()) == pytest.approx(std, rel=0.02)
    limit = 127.5 / 5418.75 * (1 if variant == "released" else 5418.75**0.5)
    assert float(noise.min()) == pytest.approx(-limit)
    # U{0..254}, not U{0..255}: the released code's randint excludes its upper end.
    assert float(noise.max()) == pytest.approx(limit * 126.5 / 127.5)


def test_the_image_aims_at_the_cards_statistics() -> None:
    card = ModelCard((3, 8, 8), (0.5,) * 3, (0.25,) * 3, 4, InputStats((0.1,) * 3, (0.9,) * 3))
    by_card, _ = _distill(dataclasses.replace(SMALL, input_target="card"), card=card)
    released, _ = _distill(dataclasses.replace(SMALL, input_target="released"), card=card)
    plain, _ = _distill(SMALL)
    assert torch.equal(released, plain)  # where the domain is unknown, the targets are 0 and 1
    assert not torch.equal(by_card, released)


def test_diverging_loss_raises() -> None:
    with pytest.raises(NonFiniteError):
        _distill(dataclasses.replace(SMALL, lr=float("inf")))
