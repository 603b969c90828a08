from __future__ import annotations

import pytest

from dfqbench.api import Precision
from dfqbench.run.execute.executors import memory_need, plan_slots
from dfqbench.run.execute.processes import clean_environment
from dfqbench.run.store import environment
from dfqbench.run.store.environment import Machine, describe_environment, resolve_precision, visible_gpus
from dfqbench.run.store.record import Record
from dfqbench.run.store.record_parts import PeakMemory

CARDS = (("0", "H200"), ("1", "H200"), ("2", "T4"))


@pytest.mark.parametrize(
    ("device", "jobs", "machine", "variables", "why"),
    [
        ("cpu", None, Machine(5, 1e6, ()), [{}] * 2, ""),
        ("cpu", None, Machine(1, 1e6, ()), [{}], ""),
        ("cpu", None, Machine(64, 4500.0, ()), [{}] * 3, "3 jobs at once instead of 9: 4.4 GiB of free memory"),
        ("cpu", 3, Machine(64, 1e6, ()), [{}] * 3, ""),
        ("cpu", 8, Machine(4, 1e6, ()), [{}] * 2, "2 jobs at once instead of 8: 4 cores for 2 threads each"),
        ("cpu", 8, Machine(64, 4500.0, ()), [{}] * 3, "4.4 GiB of free memory for about 1.5 each"),
        ("cpu", 2, Machine(1, 100.0, ()), [{}], "1 job at once instead of 2"),
        ("cuda", None, Machine(64, 1e6, CARDS[:1]), [{}], ""),
        ("cuda", 4, Machine(64, 1e6, CARDS[:1], (12000.0,)), [{}] * 3, "3 jobs at once instead of 4: 1 GPU with 11.7"),
        ("cuda", 2, Machine(64, 1e6, CARDS[:1], (1000.0,)), [{}], "1 job at once instead of 2: 1 GPU with 1.0 GiB"),
        ("cuda", 3, Machine(64, 1e6, CARDS, (9e4, 9e4, 1.0)), [{"CUDA_VISIBLE_DEVICES": n} for n in "010"], ""),
        ("cuda:1", 2, Machine(64, 1e6, CARDS, (1.0, 9e4, 1.0)), [{}] * 2, ""),
        ("cuda", None, Machine(64, 1e6, CARDS), [{"CUDA_VISIBLE_DEVICES": n} for n in "01"], ""),
        ("cuda:1", None, Machine(64, 1e6, CARDS), [{}], ""),
        ("cuda", None, Machine(3, 1e6, CARDS), [{"CUDA_VISIBLE_DEVICES": "0"}], "3 cores for 2 threads each"),
    ],
)
def test_no_more_jobs_than_fit(
    device: str, jobs: int | None, machine: Machine, variables: list[dict[str, str]], why: str
) -> None:
    slots, note = plan_slots(device, jobs, 2, memory_need([], device), machine, cells=9)
    assert [dict(slot.variables) for slot in slots] == variables
    cards = [slot.variables.get("CUDA_VISIBLE_DEVICES", "") for slot in slots]
    flag = "cpu_shared" if device == "cpu" else "gpu_shared"
    assert [slot.shared_flag for slot in slots] == [flag if cards.count(card) > 1 else "" for card in cards]
    assert why in note
    assert bool(why) == bool(note)


def test_one_cell_runs_alone_and_is_not_flagged() -> None:
    for jobs in (None, 4):
        slots, note = plan_slots("cpu", jobs, 1, memory_need([], "cpu"), Machine(64, 1e6, ()), cells=1)
        assert ([slot.shared_flag for slot in slots], note) == ([""], "")


def test_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "gpu_names", lambda: ("A", "B"))
    monkeypatch.setattr(environment, "gpu_uuids", lambda: ("GPU-77", "GPU-88"))
    assert visible_gpus({}) == (("0", "A"), ("1", "B"))
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1"}) == (("1", "B"),)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-1a2b, 0"}) == (("GPU-1a2b", "GPU"), ("0", "A"))
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-8,GPU-77"}) == (("GPU-8", "B"), ("GPU-77", "A"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    names = {device: describe_environment(device)["device_name"] for device in ("cuda", "cuda:1")}
    assert names == {"cuda": "B", "cuda:1": "A"}
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == ()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == ()


@pytest.mark.parametrize(
    ("device", "peaks", "need"),
    [
        ("cpu", {}, (1500.0, 4000.0)),
        ("cpu", {"cpu": 3000.0, "cuda": 1e6}, (3600.0, 14000.0)),
        ("cuda", {}, (1500.0, 4000.0)),
        ("cuda", {"cuda": 1000.0, "cpu": 1e6}, (1500.0, 6000.0)),
    ],
)
def test_memory_need_follows_earlier_records(device: str, peaks: dict[str, float], need: tuple[float, float]) -> None:
    records = [Record(device=name, peak_mib=PeakMemory(synthesis=mib)) for name, mib in peaks.items()]
    assert memory_need(records, device) == need


def test_environment_variables_of_workers_name_no_data() -> None:
    variables = {"DFQBENCH_DATA": "/data", "IMAGENET": "/data/imagenet/", "PATH": "/data/imagenet:/bin", "LANG": "C"}
    assert clean_environment(variables, ["/data/imagenet"]) == {"PATH": "/data/imagenet:/bin", "LANG": "C"}


@pytest.mark.parametrize(
    ("flags", "device", "expected"),
    [
        ({"avx2", "fma"}, "cpu", "float32-fast"),
        ({"avx512_bf16"}, "cpu", "mixed-bfloat16"),
        ({"amx_bf16"}, "cpu", "mixed-bfloat16"),
        (set(), "cuda:1", "mixed-bfloat16"),
    ],
)
def test_auto_precision_depends_on_the_instruction_set(
    flags: set[str], device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "cpu_flags", lambda: frozenset(flags))
    assert resolve_precision("auto", device) == expected
    assert resolve_precision("float32", device) == Precision.FLOAT32
