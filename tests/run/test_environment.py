from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dfqbench.report import describe_hardware
from dfqbench.run.store.environment import describe_environment, environment_id, knows_torch, write_environment
from dfqbench.run.store.resources import UNKNOWN_MIB, free_memory_mib

NODE: dict[str, Any] = describe_environment("cpu") | {
    "instructions": ["GenuineIntel", "avx2", "avx512f"],
    "cpu": "Xeon 6230",
    "device_name": "Xeon 6230",
    "cores": 40,
}
GPU_NODE: dict[str, Any] = NODE | {"device": "cuda", "device_name": "A100", "driver": "550.54"}


@pytest.mark.parametrize(
    ("node", "changes", "same"),
    [
        (NODE, {"cpu": "Xeon 6248", "device_name": "Xeon 6248", "cores": 64}, True),
        (NODE, {"revision": "abc", "installed": {}, "driver": "550"}, True),
        (NODE, {"instructions": ["GenuineIntel", "avx2"]}, False),
        (NODE, {"instructions": ["AuthenticAMD", "avx2", "avx512f"]}, False),
        (NODE, {"packages": {"torch": "9"}}, False),
        (NODE, {"variables": {"MKL_CBWR": "AVX2"}}, False),
        (GPU_NODE, {"device": "cuda:3", "driver": "570.1", "cpu": "EPYC", "cores": 128}, True),
        (GPU_NODE, {"device_name": "H100"}, False),
        (GPU_NODE, {"kernels": "none"}, False),
        (NODE, {"device": "cuda"}, False),
    ],
)
def test_environment_is_what_can_change_digits(node: dict[str, Any], changes: dict[str, Any], same: bool) -> None:
    assert (environment_id(node) == environment_id(node | changes)) == same


def test_hardware_of_every_node_of_an_environment_is_named(tmp_path: Path) -> None:
    name = environment_id(NODE)
    other = NODE | {"cpu": "Xeon 6248", "device_name": "Xeon 6248", "cores": 64}
    for node in (NODE, other, NODE):
        write_environment(tmp_path, node, name)
    assert not knows_torch(tmp_path, other, name)
    write_environment(tmp_path, other | {"torch": {}}, name)
    assert knows_torch(tmp_path, other, name)
    assert not knows_torch(tmp_path, NODE, name)
    assert len(list(tmp_path.glob("environments/*"))) == 2
    (words,) = describe_hardware(tmp_path).values()
    assert "Xeon 6230, 40 cores" in words
    assert "Xeon 6248, 64 cores" in words


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {2**20 * 64} kB\n", **files}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


GIB = 2**30
JOB, V2, V1 = "slurm/job_7/step_0", "sys/fs/cgroup", "sys/fs/cgroup/memory"
OWN_V2 = {
    "proc/self/cgroup": f"0::/{JOB}\n",
    f"{V2}/{JOB}/memory.max": "max\n",
    f"{V2}/{JOB}/memory.current": f"{GIB}\n",
    f"{V2}/slurm/job_7/memory.max": f"{8 * GIB}\n",
    f"{V2}/slurm/job_7/memory.current": f"{3 * GIB}\n",
    f"{V2}/slurm/job_7/memory.stat": f"anon 5\ninactive_file {GIB}\n",
}
OWN_V1 = {
    "proc/self/cgroup": f"5:cpu,cpuacct:/other\n4:memory:/{JOB}\n0::/\n",
    f"{V1}/{JOB}/memory.limit_in_bytes": f"{2**63 - 4096}\n",
    f"{V1}/{JOB}/memory.usage_in_bytes": "0\n",
    f"{V1}/slurm/job_7/memory.limit_in_bytes": f"{4 * GIB}\n",
    f"{V1}/slurm/job_7/memory.usage_in_bytes": f"{GIB}\n",
}
CONTAINER_V1 = {
    "proc/self/cgroup": "4:memory:/docker/77\n",
    f"{V1}/memory.limit_in_bytes": f"{2 * GIB}\n",
    f"{V1}/memory.usage_in_bytes": f"{GIB}\n",
}


@pytest.mark.parametrize(
    ("files", "variables", "gib"),
    [
        ({}, {}, 64),
        (OWN_V2, {}, 6),
        (OWN_V1, {}, 3),
        (CONTAINER_V1, {}, 1),
        (OWN_V2, {"SLURM_MEM_PER_NODE": "5120"}, 5),
        ({}, {"SLURM_MEM_PER_NODE": "0"}, 64),
        ({}, {"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_ON_NODE": "4"}, 8),
        ({"proc/meminfo": ""}, {"SLURM_MEM_PER_CPU": "2048"}, UNKNOWN_MIB / 1024),
        (OWN_V2 | {f"{V2}/slurm/job_7/memory.current": f"{10 * GIB}"}, {}, 0),
    ],
)
def test_free_memory_is_that_of_the_own_control_groups_and_job(
    files: dict[str, str], variables: dict[str, str], gib: float, tmp_path: Path
) -> None:
    assert free_memory_mib(tree(tmp_path, files), variables) == pytest.approx(gib * 1024)


def test_description_of_an_environment_is_plain_data() -> None:
    assert json.loads(json.dumps(describe_environment("cpu")))["instructions"]
