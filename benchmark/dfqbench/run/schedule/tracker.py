"""`run --track`: one run of trackio, Weights & Biases or a module like them for each cell."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from contextvars import Context, copy_context
from types import ModuleType
from typing import Any

import pluggy

from dfqbench import hookspecs
from dfqbench.api.errors import PluginError, UsageError
from dfqbench.api.method import PROJECT, hookimpl
from dfqbench.isolation import PLUGIN_FAILURES, rollback_imports
from dfqbench.plugins import Plugins
from dfqbench.plugins.offers import Origin, one_line

FUNCTIONS = ("init", "log", "finish")
INSTALL = {"trackio": "install it: pip install 'dfqbench[track]'", "wandb": "install it: pip install wandb"}
NOT_RUN = frozenset({"skipped", "unavailable"})
"""Statuses of cells of which there is nothing to log."""


def load_tracker(name: str) -> Tracker:
    """Return an observer that logs every cell with a module; nothing else imports it, or uses its network.

    Raises:
        UsageError: there is no such module, or it lacks a function.
    """
    hint = INSTALL.get(name, f"name trackio, wandb, or an importable module with {', '.join(FUNCTIONS)}")
    try:
        with rollback_imports(name.partition(".")[0]):
            module = importlib.import_module(name)
    except PLUGIN_FAILURES as error:
        raise UsageError(f"--track: '{name}' cannot be imported: {one_line(error)}", hint) from error
    if missing := [function for function in FUNCTIONS if not callable(getattr(module, function, None))]:
        raise UsageError(f"--track: module '{name}' has no {', '.join(missing)}", hint)
    return Tracker(module)


class Tracker:
    """Logs cells with a module: `init` begins a cell's run, whose `log` and `finish` are used from then on.

    Each cell under way has a context of its own: trackio ends the run that is open in the context of `init`.
    """

    def __init__(self, module: ModuleType) -> None:
        self._name = module.__name__
        self._init = module.init
        # wandb returns the run that is open otherwise.
        several = "reinit" in inspect.signature(module.init).parameters
        self._options = {"reinit": "create_new"} if several else {}
        self._runs: dict[str, tuple[Context, Any] | None] = {}
        self._free: list[Context] = []

    def install(self, plugins: Plugins) -> None:
        """Observe the runs of these plugins."""
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        manager.register(self)
        plugins.install(Origin(self._name, f"{self._name} (--track)", ""), {}, manager)

    @hookimpl
    def dfqbench_progress(self, cell: Mapping[str, Any], phase: str, step: int, scalars: Mapping[str, float]) -> None:
        """Log the scalars of a step."""
        if scalars:
            self._log(cell, {f"{phase}/step": step} | {f"{phase}/{name}": value for name, value in scalars.items()})

    @hookimpl
    def dfqbench_record_finished(self, record: Mapping[str, Any]) -> None:
        """Log the results of a cell, and finish its run."""
        if record["status"] in NOT_RUN:
            return
        try:
            self._log(record, _results(record))
        finally:
            if (begun := self._runs.pop(record["cell_id"], None)) is not None:
                context, run = begun
                self._free.append(context)
                context.run(run.finish)

    def _log(self, cell: Mapping[str, Any], numbers: dict[str, Any]) -> None:
        key = cell["cell_id"]
        if key not in self._runs:
            # It stays so where `init` fails, which may take long without a network: once a cell is enough.
            self._runs[key] = None
            self._runs[key] = self._begin(cell)
        if (begun := self._runs[key]) is not None:
            context, run = begun
            context.run(run.log, numbers)

    def _begin(self, cell: Mapping[str, Any]) -> tuple[Context, Any]:
        model, scheme = cell["model"]["name"], cell["scheme"]["label"]
        keys = ("method", "quantizer", "recipe", "target", "budget", "precision", "seed", "params", "device", "cell_id")
        config = {"model": model, "scheme": scheme} | {key: cell[key] for key in keys}
        project, name = f"dfqbench-{cell['run']}", f"{cell['label']} {model} {scheme} seed {cell['seed']}"
        context = self._free.pop() if self._free else copy_context()
        run = context.run(self._init, project=project, name=name, config=config, **self._options)
        if not (hasattr(run, "log") and hasattr(run, "finish")):
            raise PluginError(f"init returned {type(run).__name__}", "return a run with log and finish")
        return context, run


def _results(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the status, the accuracies and the seconds of a record."""
    results = {key: record.get(key) for key in ("status", "top1", "fp_top1", "drop", "top1_se", "agreement")}
    results |= {f"seconds/{phase}": seconds for phase, seconds in (record.get("seconds") or {}).items()}
    results["error"] = (record.get("error") or {}).get("message")
    return {key: value for key, value in results.items() if value is not None}
