"""Fixtures that several rooms of the tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Small tensors on several threads spend their time waiting for one another; workers set their own number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if shutil.which("nvidia-smi") is None:
    # Without a GPU the kernels for GPUs are interpreted; Triton looks at this when it is first imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

DATA = os.environ.get("DFQBENCH_DATA")


def pytest_configure(config: pytest.Config) -> None:
    """Where several processes share the files, they take them in the order below, not by the number of tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Several processes begin with the files that take longest, so that none is left alone with one at the end."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real evaluation sets and weights, named by DFQBENCH_DATA."""
    if not DATA:
        pytest.skip("needs the real data: set DFQBENCH_DATA to a folder with a targets.toml")
    folder = Path(DATA)
    if not (folder / "targets.toml").is_file():
        pytest.fail(f"DFQBENCH_DATA={DATA} has no targets.toml")
    return folder.resolve()


@pytest.fixture
def library() -> Iterator[str]:
    """The library of compiled passes for CPUs, in use."""
    from dfqbench.native import binding, built

    found = built()
    if found.path is None:
        pytest.skip(f"no compiled passes here: {found.reason}")
    with binding.using(found.path):
        yield str(found.path)


@pytest.fixture(params=["library", "kernels"])
def in_use(request: pytest.FixtureRequest) -> str:
    """The compiled passes in use: the library for CPUs, then the kernels for GPUs, which Triton interprets here."""
    request.getfixturevalue(request.param)
    return str(request.param)


@pytest.fixture
def kernels() -> Iterator[None]:
    """The kernels for GPUs, in use for tensors on the CPU: Triton interprets them here."""
    from dfqbench.native import binding

    with interpreted() as call, binding.using_passes(binding.Passes("cpu", call, saves_launches=True)):
        yield


@contextmanager
def interpreted() -> Iterator[Any]:
    """The kernels for GPUs as functions of tensors on the CPU."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the kernels are compiled for a GPU here, and not interpreted")
    interpreter = pytest.importorskip("triton.runtime.interpreter", reason="no Triton here")
    import numpy as np
    import torch
    import triton.language as tl
    from dfqbench.native import gpu

    plain = interpreter._convert_float

    def converted(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return plain(values, source, target, rounding)
        # A GPU rounds to the nearest, where the interpreter cuts off.
        narrow = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
        return narrow.view(torch.int16).numpy().view(np.uint16)

    def product(_builder: Any, a: Any, b: Any, total: Any, *_: Any) -> Any:
        # bfloat16 is kept as the upper half of a float32; the interpreter would multiply it as an integer.
        wide = [_widened(one.data) if one.dtype.scalar == tl.bfloat16 else one.data for one in (a, b)]
        found = np.matmul(*wide, dtype=np.float32) + total.data
        return interpreter.TensorHandle(found, total.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(interpreter, "_convert_float", converted)
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", product)
        yield gpu.call


def _widened(halves: Any) -> Any:
    import numpy as np

    return (np.ascontiguousarray(halves).astype(np.uint32) << 16).view(np.float32)


@pytest.fixture(autouse=True)
def _no_inherited_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see the real data only through `real_data`, so that they behave alike with and without it."""
    monkeypatch.delenv("DFQBENCH_DATA", raising=False)
