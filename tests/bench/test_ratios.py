"""Every kind of step at both shapes, as ratios within one run; a bar that the code must not fall below."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from dfqbench.run.store.environment import resolve_precision
from dfqbench.testing.bench.apart import measured
from dfqbench.testing.bench.measure import GENERATORS, ITERATIONS, kinds
from dfqbench.testing.bench.networks import SHAPES


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("shape", ["cifar", "imagenet"])
@pytest.mark.parametrize("kind", kinds())
def test_ratio(kind: str, shape: str, benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--benchmark-enable"):
        pytest.skip("measures speed: run `pytest tests/bench --benchmark-enable`")
    precision = resolve_precision("auto", "cpu")
    row = benchmark.pedantic(measured, args=(kind, SHAPES[shape], precision), rounds=1)
    benchmark.group = f"{kind} {shape}"
    benchmark.extra_info.update(row)
    # The least that may hold on any machine; the project's bars are in the README and shown by `dfqbench bench`.
    assert row["textbook"] / row["ours"] > (1.0 if kind in {*GENERATORS, *ITERATIONS} else 0.8)
