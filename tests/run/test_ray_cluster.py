"""The Ray executor on a real cluster: nodes of this machine, which have addresses of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attempts import FILES, PLUGINS
from dfqbench.run.execute.ray_executor import LOST
from dfqbench.run.store.record import Record
from dfqbench.run.store.run_folder import read_records

pytest.importorskip("ray", reason="needs Ray: pip install 'dfqbench[ray]'")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]
STORE = 80_000_000
"""Bytes of a node's object store, close to the least that Ray takes."""
SLOW = ("--methods", "slow-steps", "--plugin", str(PLUGINS / "resumable.py"), "--seeds", "0-2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster whose head runs no jobs, with two nodes that do."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "node_ip_address": "127.0.0.2", "object_store_memory": STORE, "include_dashboard": False}
        cluster = patient(lambda: Cluster(initialize_head=True, head_node_args=head))
        for number in (3, 4):
            add_node(cluster, number)
        yield cluster
        cluster.shutdown()


def add_node(cluster: Any, number: int, **variables: str) -> Any:
    options = {"num_cpus": 1, "node_ip_address": f"127.0.0.{number}", "object_store_memory": STORE}
    return patient(lambda: cluster.add_node(**options, env_vars=variables))


def patient(start: Callable[[], Any], tries: int = 4) -> Any:
    """Start a node; Ray itself waits for 30 seconds only, which a busy machine may need."""
    for _ in range(tries - 1):
        try:
            return start()
        except Exception as error:
            if "timed out" not in str(error):
                raise
    return start()


def begin(out: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    command = (sys.executable, "-m", "dfqbench", "run", "--grid", "smoke", "--limit", "60", "--out", str(out))
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | variables,
        cwd=out.parent,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    output = process.communicate()[0]
    assert process.returncode == status, output
    return output


def digits(out: Path) -> dict[str, tuple[Any, ...]]:
    """Return what must not depend on where a cell runs, by cell: accuracy, answers, counts, student and images."""
    records, unreadable = read_records(out)
    assert unreadable == []
    return {record.cell_id: (*numbers(record), *files(out, record)) for record in records}


def numbers(record: Record) -> tuple[Any, ...]:
    return record.status, record.attempt, record.top1, record.correct, record.counts, record.environment


def files(out: Path, record: Record) -> list[bytes]:
    return [(out / "smoke" / "cells" / record.cell_id / "attempt-1" / name).read_bytes() for name in FILES]


def test_two_nodes_give_the_digits_of_the_local_executor(cluster: Any, tmp_path: Path) -> None:
    grid = ("--methods", "zeroq,noise", "--bits", "w4a4,w3a3")
    finish(begin(tmp_path / "here", *grid, "--jobs", "1"))
    output = finish(begin(tmp_path / "there", *grid, "--executor", "ray", RAY_ADDRESS=cluster.address))
    assert "4 cells on cpu, 2 at once" in output
    assert digits(tmp_path / "there") == digits(tmp_path / "here")
    assert not list((tmp_path / "there" / "smoke").glob(".shared-*"))


def test_node_killed_in_the_middle_of_a_cell(cluster: Any, tmp_path: Path) -> None:
    finish(begin(tmp_path / "here", *SLOW))
    out = tmp_path / "there"
    run = begin(out, *SLOW, "--checkpoint-every", "0s", "--executor", "ray", RAY_ADDRESS=cluster.address)
    end = time.monotonic() + 600.0
    while len({file.parent for file in out.glob("smoke/cells/*/checkpoints/checkpoint-*")}) < 2:
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    finish(run)
    add_node(cluster, 5)
    assert digits(out) == digits(tmp_path / "here")
    (lost,) = [record for record in read_records(out)[0] if record.warnings]
    assert lost.warnings == [LOST]
    assert lost.resumed > 0
    assert (lost.seconds.unattributed or 0.0) >= 0.0


def test_node_with_another_environment_is_refused(cluster: Any, tmp_path: Path) -> None:
    other = add_node(cluster, 6, ATEN_CPU_CAPABILITY="default")
    run = begin(tmp_path / "out", "--methods", "noise", "--executor", "ray", RAY_ADDRESS=cluster.address)
    output = finish(run, status=2)
    cluster.remove_node(other)
    # Which node is named first is Ray's choice.
    for part in ("(127.0.0.6)", "differs from node", "ATEN_CPU_CAPABILITY", "run on nodes that are equal"):
        assert part in output
    assert list(tmp_path.iterdir()) == []
