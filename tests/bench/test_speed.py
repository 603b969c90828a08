"""Speed as ratios within one run: training beside a plain loop, calibration and evaluation beside the bare networks.

`tox -e bench` measures; `--device cuda` on a GPU, `--precision float32` as with `dfqbench run --exact`. CPU threads are
those of OMP_NUM_THREADS, one by default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from dfqbench.api import Precision
from dfqbench.run.store.environment import resolve_precision
from isolated import isolated, median_seconds
from shapes import SHAPES, Shape
from steps import STEPS

SLOWEST = {"calibrate": 8.0, "evaluate": 2.0}  # times the bare networks' time, on any machine
Measure = Callable[[str, str], dict[str, float]]


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> Measure:
    """Return a function that measures contestants in a process of their own and adds a row to the table."""
    option = request.config.getoption
    if not option("--benchmark-enable"):
        pytest.skip("measures speed: run `tox -e bench`")
    benchmark: BenchmarkFixture = request.getfixturevalue("benchmark")
    device = option("--device")
    precision = resolve_precision(option("--precision"), device)

    def measure(name: str, shape: str) -> dict[str, float]:
        arguments = (median_seconds, replace(SHAPES[shape], device=device), precision, name)
        seconds: dict[str, float] = benchmark.pedantic(isolated, args=arguments, rounds=1)  # type: ignore[no-untyped-call]
        (reference,) = seconds.keys() - {"dfqbench"}
        ratio = seconds["dfqbench"] / seconds[reference]
        row = {"step": name, "shape": shape, "precision": str(precision), "device": device}
        row |= {"dfqbench": f"{seconds['dfqbench'] * 1000:.1f} ms", "reference": reference, "ratio": f"{ratio:.3f}"}
        row["speedup"] = f"{1 / ratio:.2f}" if reference == "baseline" else ""
        request.node.user_properties.append(("speed", row))
        benchmark.extra_info.update(row | {"seconds": seconds})
        return seconds

    return measure


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", STEPS)
def test_step(name: str, shape: str, measure: Measure) -> None:
    seconds = measure(name, shape)
    if name in SLOWEST:
        assert seconds["dfqbench"] < SLOWEST[name] * seconds["lower_bound"]
    else:
        assert seconds["dfqbench"] < seconds["baseline"]


@pytest.mark.parametrize("name", STEPS)
def test_every_step_runs(name: str) -> None:
    shape = Shape(side=8, classes=10, batch=4, evaluated=8)
    assert min(median_seconds(shape, Precision.MIXED_BFLOAT16, name, rounds=1).values()) > 0
