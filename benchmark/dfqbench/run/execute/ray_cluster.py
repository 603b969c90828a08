"""Connect to a Ray cluster, compare its nodes, and start a node executor on each of them, or on each of their GPUs."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dfqbench.api.errors import UsageError
from dfqbench.run.execute.job import Slot
from dfqbench.run.execute.node_executor import UNEQUAL, NodeExecutor, NodeFacts, NodeSettings, node_facts
from dfqbench.run.execute.ray_executor import RayExecutor
from dfqbench.run.store.files import shortened

BUSY = 60.0
"""Seconds until nodes without free CPUs or GPUs are a reason to refuse the run."""
THREADS = 8
"""Calls that a node executor takes at once: the job, its news, and those that end it; most are short."""
USAGE = "RAY_USAGE_STATS_ENABLED"


class RayCluster:
    """A cluster whose nodes are equal.

    Attributes:
        device: torch device of its nodes.
        facts: of each of its nodes.

    Args:
        ray: the module, connected.
        places: number of nodes, or of their GPUs.
        plugin_files: local plugin files.
    """

    def __init__(self, ray: Any, places: int, device: str, facts: NodeFacts, plugin_files: Sequence[str]) -> None:
        self._ray = ray
        self._places = places
        self._plugin_files = tuple(plugin_files)
        self.device = device
        self.facts = facts

    def executor(
        self,
        folder: Path,
        *,
        jobs: int | None,
        cells: int,
        threads: int,
        grace: float,
        confined: bool,
        data: Iterable[Path],
    ) -> tuple[RayExecutor, str]:
        """Start node executors.

        Args:
            folder: the run's; it exists.
            jobs: requested jobs at once, or None: one at each place.
            cells: cells to run; no more jobs than that.
            threads: CPU threads of a job.
            grace: seconds that a worker has to keep its state and end.
            confined: whether plugin code is confined to what it needs, where the kernel can.
            data: files and folders of real data, which must lie at the same place on every node.

        Returns:
            The executor, and a line about what kept its slots fewer than requested; empty where nothing did.

        Raises:
            UsageError: nodes are busy, do not share the folder, or cannot work.
        """
        requested = max(1, min(jobs or self._places, cells))
        count = min(requested, self._places)
        token = folder / f".shared-{secrets.token_hex(8)}"
        token.touch()
        settings = NodeSettings(
            slot=Slot(0),
            folder=str(folder),
            token=token.name,
            paths=tuple(map(str, data)),
            device=self.device,
            threads=threads,
            grace=grace,
            confined=confined,
            facts=self.facts,
            plugin_files=self._plugin_files,
        )
        try:
            actors = self._actors([replace(settings, slot=Slot(number)) for number in range(count)])
        except BaseException:
            token.unlink(missing_ok=True)
            self._ray.shutdown()
            raise
        what = "nodes" if self.device == "cpu" else "GPUs"
        note = f"{count} at once instead of {requested}: Ray has {count} {what}" if count < requested else ""
        return RayExecutor(self._ray, actors, token), note

    def _actors(self, settings: Sequence[NodeSettings]) -> list[Any]:
        """Start an actor at each of some places, and wait until all are ready."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        ray, on_gpu = self._ray, self.device != "cpu"
        # A lost actor never comes back beside another one: their times would not be comparable.
        bundle = {"CPU": 1, "GPU": 1} if on_gpu else {"CPU": settings[0].threads}
        group = placement_group([bundle] * len(settings), strategy="SPREAD" if on_gpu else "STRICT_SPREAD")
        if not group.wait(BUSY):
            raise UsageError(
                f"Ray has no room for {len(settings)} jobs of {bundle} at once", "wait for others, or use fewer --jobs"
            )
        actor_class = ray.remote(max_restarts=-1, max_task_retries=0, max_concurrency=THREADS)(NodeExecutor)
        actors = [
            actor_class.options(
                num_cpus=bundle["CPU"],
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
            ).remote(of_actor)
            for number, of_actor in enumerate(settings)
        ]
        try:
            problems: list[str] = ray.get([actor.problem.remote() for actor in actors])
        except ray.exceptions.RayError as error:
            raise UsageError(f"a node of the Ray cluster cannot start: {_reason(error)}", UNEQUAL) from error
        for problem in problems:
            if problem:
                raise UsageError(
                    f"a node of the Ray cluster cannot take part: {problem}",
                    "share the results folder (--out) and the data at the same paths among nodes that are equal",
                )
        return actors


def connect(device: str, plugin_files: Sequence[Path] = ()) -> RayCluster:
    """Connect to the running Ray cluster (RAY_ADDRESS, or that of this machine), and compare its nodes.

    Args:
        device: `auto`, `cpu` or `cuda`; `auto` is `cuda` where Ray has GPUs.
        plugin_files: local plugin files.

    Raises:
        UsageError: Ray is not installed or not running, or the nodes differ from one another or from this machine.
    """
    os.environ.setdefault(USAGE, "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError("--executor ray needs Ray, which is not installed", "pip install 'dfqbench[ray]'") from error
    try:
        ray.init(address="auto", log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "start it with `ray start --head`, and set RAY_ADDRESS where it runs elsewhere"
        raise UsageError(f"no Ray cluster can be reached: {_reason(error)}", hint) from error
    if device.startswith("cuda:"):
        raise UsageError(f"--device {device} names a GPU, but Ray chooses the GPUs", "write --device cuda")
    nodes = [node for node in ray.nodes() if node["Alive"]]
    on_gpu = device != "cpu" and any(node["Resources"].get("GPU", 0) >= 1 for node in nodes)
    if device == "cuda" and not on_gpu:
        raise UsageError(
            "--device cuda: Ray has no GPU", "start its nodes with `ray start --num-gpus N`, or --device cpu"
        )
    resource = "GPU" if on_gpu else "CPU"
    counts = {node["NodeID"]: int(node["Resources"].get(resource, 0)) for node in nodes}
    names = {
        node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for node in nodes
        if counts[node["NodeID"]]
    }
    if not names:
        raise UsageError("the Ray cluster has no CPU for a job", "start its nodes with `ray start --num-cpus N`")
    device = "cuda" if on_gpu else "cpu"
    files = [str(file.absolute()) for file in plugin_files]
    facts = _equal_facts(ray, names, device, files)
    return RayCluster(ray, sum(counts.values()) if on_gpu else len(names), device, facts, files)


def _equal_facts(ray: Any, names: Mapping[str, str], device: str, files: Sequence[str]) -> NodeFacts:
    """Return the facts of some nodes (name by identity), which must be the same on each."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, num_gpus=0 if device == "cpu" else 1, max_retries=1)(node_facts)
    refs = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(device, files)
        for node_id in names
    ]
    facts: list[NodeFacts] = []
    for name, ref in zip(names.values(), refs, strict=True):
        try:
            facts.append(ray.get(ref, timeout=BUSY))
        except ray.exceptions.GetTimeoutError as error:
            raise UsageError(
                f"node {name} has no free GPU, or does not answer", "wait, or stop what runs there"
            ) from error
        except ray.exceptions.RayError as error:
            raise UsageError(
                f"node {name} cannot run dfqbench: {_reason(error)}", f"install it there; {UNEQUAL}"
            ) from error
    first = next(iter(names.values()))
    for name, other in zip(names.values(), facts, strict=True):
        if differences := facts[0].differences(other):
            raise UsageError(f"node {name} differs from node {first}: {', '.join(differences)}", UNEQUAL)
    # Identities of cells come from this machine's code; its packages and hardware run nothing.
    here = replace(facts[0], code=node_facts(device, files).code)
    if differences := here.differences(facts[0]):
        raise UsageError(f"node {first} differs from {socket.gethostname()}: {', '.join(differences)}", UNEQUAL)
    return facts[0]


def _reason(error: Exception) -> str:
    """Return the last line of an error of Ray, which says most; tracebacks of other machines come before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shortened(lines[-1]) if lines else type(error).__name__
