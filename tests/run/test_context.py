from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from attempts import host_context
from dfqbench.accel import backend
from dfqbench.api import NonFiniteError, PluginError, Precision
from dfqbench.quant import parse_scheme
from dfqbench.run.worker import context
from dfqbench.run.worker.device_setup import equal_rng_states, get_rng_state, seeded, set_rng_state


def test_bad_loss_is_reported_with_its_step(tmp_path: Path) -> None:
    ctx = host_context(tmp_path)
    with pytest.raises(NonFiniteError, match="loss in synthesis is not finite at step 13") as caught:
        for step in range(1, 101):
            ctx.progress(step, 100, loss=torch.tensor(float("inf") if step in {13, 20} else 1.0))
    assert caught.value.step == 13
    assert ctx.steps == 50


def test_bad_number_is_reported_at_once(tmp_path: Path) -> None:
    ctx = host_context(tmp_path)
    with pytest.raises(NonFiniteError, match="at step 3"):
        ctx.progress(3, 100, loss=float("nan"))


def test_scalars_are_read_every_fifty_steps(tmp_path: Path) -> None:
    reports = []
    ctx = host_context(tmp_path, report_every=0.0, report=lambda *report: reports.append(report))
    for step in range(1, 121):
        ctx.progress(step, 120, loss=torch.tensor(float(step)))
    assert [step for step, _, scalars in reports if scalars] == [50, 100, 120]
    assert reports[49] == (50, 120, {"loss": 50.0})


def test_quick_steps_report_scalars_as_often_as_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(1)
    monkeypatch.setattr(context, "time", Mock(monotonic=lambda: next(clock) * 0.007))
    reports = []
    ctx = host_context(tmp_path, report_every=0.5, report=lambda *report: reports.append(report))
    for step in range(1, 1001):
        ctx.progress(step, 1000, loss=torch.tensor(1.0))
    # A step of the check comes every 0.35 s.
    assert [step for step, _, scalars in reports if scalars] == list(range(100, 1001, 100))
    assert len(reports) <= 2 * 1000 * 0.007 / 0.5


def test_scheme_is_an_error_for_a_source_that_does_not_depend_on_it(tmp_path: Path) -> None:
    ctx = host_context(tmp_path)
    with pytest.raises(PluginError, match="set depends_on_bits = True"):
        _ = ctx.scheme
    assert host_context(tmp_path, known_scheme=parse_scheme("w4a4")).scheme.w_bits == 4


def test_generators_and_seeds_depend_on_phase_and_key(tmp_path: Path) -> None:
    draws = set()
    for changes in ({}, {"phase": "quantization"}, {"seed_key": "other"}):
        ctx = host_context(tmp_path, **changes)
        draws.add(float(torch.rand((), generator=ctx.generator)))
        draws.add(ctx.seed("x"))
    assert len(draws) == 6
    again = host_context(tmp_path)
    assert float(torch.rand((), generator=again.generator)) in draws


def test_shared_quantizer_is_an_error_in_the_synthesis(tmp_path: Path) -> None:
    ctx = host_context(tmp_path)
    with pytest.raises(PluginError, match="call it in quantize only"):
        ctx.shared_quantize(torch.nn.Identity(), None)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:(User provided device_type of 'cuda'|CUDA is not available)")
@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (("cuda", Precision.MIXED_BFLOAT16, True), 1),
        (("cuda", Precision.FLOAT32_FAST, True), 0),
        (("cuda", Precision.MIXED_BFLOAT16, False), 0),
        (("cpu", Precision.MIXED_BFLOAT16, True), 0),
    ],
)
def test_autocast_uses_narrow_convolutions_on_gpus_while_kernels_are_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[str, Precision, bool], expected: int
) -> None:
    device, precision, kernels = case
    pytest.importorskip("triton", reason="Triton is not installed")
    narrow_convolutions = Mock(side_effect=nullcontext)
    monkeypatch.setattr("dfqbench.accel.triton.conv.NarrowConvolutions", narrow_convolutions)
    monkeypatch.setattr(backend, "_enabled", kernels)
    ctx = host_context(tmp_path, precision=precision)
    ctx.device = torch.device(device)
    with ctx.autocast():
        pass
    assert narrow_convolutions.call_count == expected


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: S311 - the globals are tested


def test_seeded_gives_same_numbers_and_restores_the_callers_generators() -> None:
    before = get_rng_state()
    expected = draws()
    set_rng_state(before)
    with seeded(2**62):
        first = draws()
    with contextlib.suppress(KeyError), seeded(2**62):
        assert draws() == first
        raise KeyError
    with seeded(3):
        assert draws() != first
    assert draws() == expected


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(())])
def test_rng_states_are_equal_until_a_number_is_drawn(draw: Callable[[], object]) -> None:
    before = get_rng_state()
    assert equal_rng_states(before, get_rng_state())
    draw()
    assert not equal_rng_states(before, get_rng_state())
    set_rng_state(before)
    assert equal_rng_states(before, get_rng_state())
