from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dfqbench.api import Batch, Precision, budget_named
from dfqbench.plugins import load_plugins
from dfqbench.quant import parse_scheme
from dfqbench.quantizers.distill import Distill
from dfqbench.quantizers.distill_loop import Distillation
from dfqbench.replay import Beside, beside_for
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_network


class _Recorded(Beside):
    """Notes what is done on which queue."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), used=False)
        self.told: list[str] = []

    @property
    def used(self) -> bool:
        """As if there were two."""
        return True

    @contextmanager
    def after(self, *taken: torch.Tensor) -> Iterator[None]:
        """Notes begin and end, and how many tensors were handed over."""
        self.told.append(f"after {len(taken)}")
        yield
        self.told.append("end")

    @contextmanager
    def there(self) -> Iterator[None]:
        """Notes it."""
        self.told.append("there")
        yield
        self.told.append("end")

    def join(self) -> None:
        """Notes it."""
        self.told.append("join")


def test_a_student_learns_beside_and_its_state_is_read_after_both(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = ToyContext(bits=parse_scheme("w4a4"), budget=budget_named("smoke"), keep_states=True)
    kind = load_plugins().method_class("gdfq")
    source: Any = kind(kind.params_type()).synthesize(toy_network(), ctx)
    training = Distillation(toy_network(), source, ctx, Distill.recipes["gdfq"])
    monkeypatch.setattr(training, "_beside", recorded := _Recorded())
    monkeypatch.setattr(training, "plan", SimpleNamespace(range_steps=1, student_start=2, total=4, epoch_steps=1))
    monkeypatch.setattr(training, "_rate", SimpleNamespace(set=lambda *_: None))

    def train(_batch: Batch, step: int) -> torch.Tensor:
        recorded.told.append(f"train {step}")
        return torch.zeros(())

    monkeypatch.setattr(training, "_train", train)
    training.run()
    kept = ["there", "join", "end"]  # report and checkpoint
    assert recorded.told == [
        *kept,
        *kept,
        "after 3",
        "train 2",
        "end",
        *kept,
        "after 3",
        "train 3",
        "end",
        *kept,
        "join",
    ]


def test_only_gpus_have_a_second_queue() -> None:
    ctx = ToyContext(precision=Precision.FLOAT32_FAST)
    beside = beside_for(ctx, SimpleNamespace(needs_student=False))
    assert not beside.used
    with beside.after(torch.ones(1)), beside.there():
        pass
    beside.join()
