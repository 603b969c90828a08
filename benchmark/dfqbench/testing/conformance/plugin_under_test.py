"""The plugin under test: what its checks share, whether it is a method or a quantizer."""

from __future__ import annotations

import dataclasses
import io
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfqbench.api import Budget, DfqError, Method, Quantizer
from dfqbench.isolation import PLUGIN_FAILURES
from dfqbench.plugins.params import build_params
from dfqbench.quant import parse_scheme
from dfqbench.testing.conformance.findings import Fault
from dfqbench.testing.conformance.sandbox import DryRun, run_in_sandbox

if TYPE_CHECKING:
    from dfqbench.plugins import LoadedOffer, Plugins

BUDGET = Budget("toy", Fraction(1, 16_000), Fraction(1, 50), 3, Fraction(1, 4000))
"""Budget of most runs: a handful of steps."""
SHORTEST = Budget("toy", Fraction(1, 80_000), Fraction(1, 500), 1, Fraction(1, 20_000))
"""Budget of the students that one source gives under every quantizer and protocol: one step of every schedule."""
DEFAULT_LIMIT = 120.0
"""Seconds that the whole dry run in a process of its own may take."""
QUANTIZER_BATCHES = dict.fromkeys(("batch", "batch_few_classes"), 4)
"""Parameters of quantizers that make a run long and decide nothing in it."""


class PluginUnderTest(ABC):
    """A method or quantizer, with results that several checks read; a dry run may take `limit` seconds."""

    def __init__(self, plugins: Plugins, name: str, limit: float = DEFAULT_LIMIT) -> None:
        self.plugins = plugins
        self.name = name
        self.limit = limit

    @property
    @abstractmethod
    def offer(self) -> LoadedOffer:
        """The plugin's offer."""

    @property
    @abstractmethod
    def plugin_class(self) -> type[Method] | type[Quantizer]:
        """The offered class; a `PluginError` says why it does not load, or how it breaks the contract."""

    @abstractmethod
    def instance(self) -> Method | Quantizer:
        """Return the plugin with its default parameters."""

    @abstractmethod
    def run_once(self, workdir: Path) -> None:
        """Run the plugin's code once on a toy network; it may write below `workdir`."""

    @property
    @abstractmethod
    def students(self) -> Mapping[str, nn.Module]:
        """Students by the way that they were made, which ends with ` under SCHEME`."""

    @cached_property
    def dry_run(self) -> DryRun:
        """A run in a process of its own."""
        kind = "quantizer" if issubclass(self.plugin_class, Quantizer) else "method"
        return run_in_sandbox(self.offer, kind, self.plugins.files, self.limit)


def make_quantizer(plugins: Plugins, label: str) -> Quantizer:
    """Return the shared quantizer `name` or `name:recipe`, with batches that make a run short."""
    name, _, recipe = label.partition(":")
    quantizer_cls = plugins.quantizer_class(name)
    recipe = recipe or quantizer_cls.default_recipe
    values = dataclasses.asdict(quantizer_cls.recipes[recipe]) if recipe else {}
    names = {field.name for field in dataclasses.fields(quantizer_cls.params_type)}
    values |= {name: size for name, size in QUANTIZER_BATCHES.items() if name in names}
    return quantizer_cls(build_params(quantizer_cls.params_type, values, name))


def schemes_for(quantizer_cls: type[Quantizer], labels: Iterable[str]) -> list[str]:
    """Return the schemes under which a quantizer can work, by label."""
    needs_folding = quantizer_cls.needs_folded_batchnorm
    return [label for label in labels if parse_scheme(label).protocol.fold_batchnorm or not needs_folding]


def checked_student(student: object, what: str) -> nn.Module:
    """Return what `what` made if it is a network."""
    if not isinstance(student, nn.Module):
        raise Fault(f"{what} returned a {type(student).__name__}", "return a student of ctx.prepare(teacher)")
    return student


@contextmanager
def plugin_code(what: str, hint: str = "") -> Iterator[None]:
    """Turn every exception of plugin code in `what` into a fault; compute on one thread, so that bits are the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    except Fault:
        raise
    except DfqError as error:
        raise Fault(f"{what} raised {type(error).__name__}: {error.message}", error.hint or hint) from error
    except PLUGIN_FAILURES as error:
        text = " ".join(str(error).split())[:300]
        raise Fault(
            f"{what} raised {type(error).__name__}: {text}{_place(error)}", hint or "repair it there"
        ) from error
    finally:
        torch.set_num_threads(threads)


def _place(error: BaseException) -> str:
    """Return the innermost line that is neither the host's nor torch's, else the innermost."""
    frames = traceback.extract_tb(error.__traceback__)
    foreign = ("/dfqbench/", "/torch/", "<frozen")
    own = [frame for frame in frames if not any(part in frame.filename.replace("\\", "/") for part in foreign)]
    frame = (own or frames)[-1]
    return f" ({frame.filename}, line {frame.lineno})"


def as_saved(state: Any, what: str) -> Any:
    """Return a state as it is after saving, and loading with `weights_only`; a fault says what cannot be loaded."""
    stream = io.BytesIO()
    hint = "keep tensors, numbers, strings, and dicts, lists and tuples of these in it"
    with plugin_code(f"saving {what}", hint):
        torch.save(state, stream)
    stream.seek(0)
    try:
        return torch.load(stream, weights_only=True)
    except Exception as error:
        text = " ".join(str(error).split())
        cause = text.partition("Unsupported global: GLOBAL ")[2].partition(" ")[0] or text[:160]
        raise Fault(f"{what} does not load with weights_only=True: it holds {cause}", hint) from error


def same(a: Any, b: Any) -> bool:
    """Compare plain data, tensors bit for bit."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
