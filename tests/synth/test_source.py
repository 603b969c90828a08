from __future__ import annotations

import dataclasses
import io

import pytest
import torch

from dfqbench.api import PluginError, is_live
from dfqbench.synth import FixedSource


def _source(count: int = 10) -> FixedSource:
    images = torch.arange(count * 3 * 4, dtype=torch.float32).view(count, 3, 2, 2)
    return FixedSource(images, labels=torch.arange(count), teacher_logits=torch.arange(count * 2.0).view(count, 2))


def test_draws_cyclically_from_the_first() -> None:
    source = _source()
    assert not is_live(source)
    assert len(source) == 10
    drawn = [source.sample(size).labels for size in (4, 4, 4, 23)]
    joined = torch.cat([labels for labels in drawn if labels is not None])
    assert torch.equal(joined, torch.arange(35) % 10)


def test_images_labels_and_logits_stay_together() -> None:
    source = _source()
    source.sample(7)
    batch = source.sample(6)
    assert batch.labels is not None
    assert batch.teacher_logits is not None
    assert torch.equal(batch.images, source.images[batch.labels])
    assert torch.equal(batch.teacher_logits[:, 0], batch.labels * 2.0)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_images_carry_no_graph() -> None:
    source = FixedSource(torch.ones(2, 3, 2, 2, requires_grad=True) * 2)
    assert not source.sample(2).images.requires_grad
    assert source.sample(2).labels is None


def test_state_survives_a_weights_only_load() -> None:
    source = _source()
    source.sample(7)
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    loaded = FixedSource(torch.zeros(1, 3, 2, 2))
    loaded.load_state_dict(state)
    expected = dataclasses.asdict(source.sample(5))
    for restored in (loaded, FixedSource.from_state(state)):
        torch.testing.assert_close(dataclasses.asdict(restored.sample(5)), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("shape", "labels"), [((0, 3, 2, 2), None), ((3, 2, 2), None), ((4, 3, 2, 2), torch.arange(3))]
)
def test_wrong_shapes_are_refused(shape: tuple[int, ...], labels: torch.Tensor | None) -> None:
    with pytest.raises(PluginError, match="a source"):
        FixedSource(torch.zeros(shape), labels)
