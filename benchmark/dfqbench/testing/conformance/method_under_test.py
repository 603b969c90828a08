"""The method under test, and its runs on toy networks, as the host would run it."""

from __future__ import annotations

import dataclasses
import io
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfqbench.api import Batch, Budget, DfqError, Method, Quantizer, SampleSource, is_live
from dfqbench.isolation import PLUGIN_FAILURES
from dfqbench.plugins.params import build_params
from dfqbench.quant import Scheme, parse_scheme
from dfqbench.run.worker.device_setup import seeded
from dfqbench.testing.conformance.findings import Fault
from dfqbench.testing.conformance.sandbox import DryRun, run_in_sandbox
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_network

if TYPE_CHECKING:
    from dfqbench.plugins import LoadedOffer, Plugins

BUDGET = Budget("toy", Fraction(1, 8000), Fraction(1, 50), 3)
"""Budget of every run: a handful of steps."""
DEFAULT_LIMIT = 120.0
"""Seconds that the whole dry run in a process of its own may take."""
BATCH = 6
"""Images of a drawn batch; neither a power of two nor the toy networks' number of classes."""
QUANTIZER_BATCHES = dict.fromkeys(("batch", "batch_few_classes", "generator_batch"), 16)
"""Parameters of quantizers that make a run long and decide nothing in it."""
LIVE_STEPS = 3
"""Updates of a live source before it is drawn from."""


@dataclass
class Run:
    """One run of `synthesize`, with the context that holds its reports."""

    teacher: nn.Module
    source: SampleSource
    ctx: ToyContext


class MethodUnderTest:
    """A method, with runs that the checks share; a dry run may take `limit` seconds.

    Raises:
        UsageError: no plugin offers the name.
    """

    def __init__(self, plugins: Plugins, name: str, limit: float = DEFAULT_LIMIT) -> None:
        self.plugins = plugins
        self.name = name
        self.limit = limit
        if name not in plugins.methods:
            plugins.method_class(name)  # raises the reason: unknown, or broken

    @property
    def offer(self) -> LoadedOffer:
        """The method's offer."""
        return self.plugins.methods[self.name]

    @property
    def method_class(self) -> type[Method]:
        """The method's class; a `PluginError` says why it does not load, or how it breaks the contract."""
        return self.plugins.method_class(self.name)

    def instance(self) -> Method:
        """Return the method with its default parameters."""
        with plugin_code("its constructor", "take the parameters and keep them: `super().__init__(params)`"):
            return self.method_class(build_params(self.method_class.params_type, {}, self.name))

    def quantizer(self, label: str = "") -> Quantizer:
        """Return the shared quantizer `name` or `name:recipe`; empty: the method's own."""
        name, _, recipe = (label or self.method_class.quantizer).partition(":")
        quantizer_cls = self.plugins.quantizer_class(name)
        recipe = recipe or quantizer_cls.default_recipe
        values = dataclasses.asdict(quantizer_cls.recipes[recipe]) if recipe else {}
        names = {field.name for field in dataclasses.fields(quantizer_cls.params_type)}
        values |= {name: size for name, size in QUANTIZER_BATCHES.items() if name in names}
        return quantizer_cls(build_params(quantizer_cls.params_type, values, name))

    def context(self, seed: int = 0, **changes: Any) -> ToyContext:
        """Return a context for a run of `synthesize`, with some of its fields changed."""
        bits = parse_scheme("w4a4@gdfq") if self.method_class.depends_on_bits else None
        return dataclasses.replace(ToyContext(budget=BUDGET, root_seed=seed, bits=bits), **changes)

    def synthesized(self, ctx: ToyContext | None = None, teacher: nn.Module | None = None) -> Run:
        """Run `synthesize` as the host does: global generators are seeded, and restored afterwards."""
        ctx = ctx or self.context()
        teacher = toy_network() if teacher is None else teacher
        method = self.instance()
        with plugin_code("synthesize"), seeded(ctx.seed("synthesis", "global")):
            return Run(teacher, method.synthesize(teacher, ctx), ctx)

    def drawn(self, run: Run, size: int = BATCH) -> Batch:
        """Draw a batch; a live source learns a few steps first."""
        with plugin_code("the source"), seeded(run.ctx.seed("drawing")):
            if is_live(run.source):
                for _ in range(LIVE_STEPS):
                    run.source.train_step(size)
            return run.source.sample(size)

    def quantized(self, run: Run, label: str, scheme: Scheme, ctx: ToyContext | None = None) -> nn.Module:
        """Return the student of the shared quantizer `label`, or with an empty label of the method's own `quantize`."""
        quantizer = self.quantizer(label)
        ctx = ctx or ToyContext(card=run.ctx.card, budget=run.ctx.budget, root_seed=run.ctx.root_seed)
        ctx.bits, ctx.shared = scheme, quantizer.quantize
        what = f"quantizer '{label}' with its source" if label else "quantize"
        with plugin_code(what), seeded(ctx.seed("quantization", "global")):
            quantize = quantizer.quantize if label else self.instance().quantize
            student: nn.Module = quantize(run.teacher, run.source, ctx)
        if not isinstance(student, nn.Module):
            raise Fault(f"{what} returned a {type(student).__name__}", "return a student of ctx.prepare(teacher)")
        return student

    @cached_property
    def first(self) -> Run:
        """A run that several checks read and none changes."""
        return self.synthesized()

    @cached_property
    def students(self) -> Mapping[str, nn.Module]:
        """Students by `quantizer scheme`: the method's own, and one of every built-in quantizer and protocol."""
        from dfqbench.quantizers import BUILTIN

        students = {}
        for label in ("", *(offer.name for offer in BUILTIN)):
            for name in ("w4a4@gdfq", "w3a5@deploy"):
                scheme = parse_scheme(name)
                ctx = self.context(bits=scheme if self.method_class.depends_on_bits else None)
                student = self.quantized(self.synthesized(ctx), label, scheme)
                students[f"{label or 'its own quantize'} under {name}"] = student
        return students

    @cached_property
    def dry_run(self) -> DryRun:
        """A run in a process of its own."""
        return run_in_sandbox(self.offer, self.plugins.files, self.limit)


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
