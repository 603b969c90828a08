"""The method under test, and its runs on toy networks, as the host would run it."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfqbench.api import Batch, Budget, DfqError, Method, ModelCard, Quantizer, SampleSource, is_live
from dfqbench.grid.params import build_params
from dfqbench.isolation import PLUGIN_FAILURES
from dfqbench.quant import Scheme, parse_scheme
from dfqbench.run.worker.device_setup import seeded
from dfqbench.testing.conformance.fault import Fault
from dfqbench.testing.conformance.sandbox import DryRun, run_in_sandbox
from dfqbench.testing.context import ToyContext
from dfqbench.testing.toys import toy_card, toy_network

if TYPE_CHECKING:
    from dfqbench.plugins import LoadedOffer, Plugins

BUDGET = Budget("toy", Fraction(1, 8000), Fraction(1, 50), 3)
"""Budget of every run: a handful of steps."""
DEFAULT_LIMIT = 120.0
"""Seconds that the whole dry run in a process of its own may take."""
BATCH = 6
"""Images of a drawn batch; neither a power of two nor the toy networks' number of classes."""
_BATCHES = dict.fromkeys(("batch", "batch_few_classes", "generator_batch"), 16)
"""Parameters of quantizers that make a run long and decide nothing in it."""
_FOREIGN = ("/dfqbench/", "/torch/", "<frozen")
"""Parts of paths that are not a plugin's."""
LIVE_STEPS = 3
"""Updates of a live source before it is drawn from."""


@dataclass
class Run:
    """One run of `synthesize`.

    Attributes:
        teacher: the network.
        source: what `synthesize` returned.
        ctx: what it was lent, with what it reported.
    """

    teacher: nn.Module
    source: SampleSource
    ctx: ToyContext

    @property
    def live(self) -> bool:
        """Whether the source still learns."""
        return is_live(self.source)


class MethodUnderTest:
    """A method, with runs that the checks share.

    Args:
        plugins: what was loaded.
        name: the method's name.
        limit: seconds that the dry run in a process of its own may take.

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
        """The method's class.

        Raises:
            PluginError: it does not load or breaks the contract.
        """
        return self.plugins.method_class(self.name)

    def instance(self) -> Method:
        """The method with its default parameters."""
        with blamed("its constructor", "take the parameters and keep them: `super().__init__(params)`"):
            return self.method_class(build_params(self.method_class.params_type, {}, self.name))

    def quantizer(self, label: str = "") -> Quantizer:
        """A shared quantizer.

        Args:
            label: `name` or `name:recipe`; empty: the method's own.
        """
        name, _, recipe = (label or self.method_class.quantizer).partition(":")
        kind = self.plugins.quantizer_class(name)
        recipe = recipe or kind.default_recipe
        values = dataclasses.asdict(kind.recipes[recipe]) if recipe else {}
        for field in dataclasses.fields(kind.params_type):
            if field.name in _BATCHES:
                values[field.name] = _BATCHES[field.name]
        return kind(build_params(kind.params_type, values, name))

    def context(self, seed: int = 0, *, card: ModelCard | None = None, **changes: Any) -> ToyContext:
        """A context for a run of `synthesize`."""
        bits = parse_scheme("w4a4@gdfq") if self.method_class.depends_on_bits else None
        context = ToyContext(card=card or toy_card(), budget=BUDGET, root_seed=seed, bits=bits)
        return dataclasses.replace(context, **changes)

    def synthesized(
        self,
        seed: int = 0,
        *,
        teacher: nn.Module | None = None,
        card: ModelCard | None = None,
        ctx: ToyContext | None = None,
        **changes: Any,
    ) -> Run:
        """Runs `synthesize` as the host does: global generators seeded, and put back afterwards.

        Args:
            seed: of the cell.
            teacher: the network; None: a toy network.
            card: its card; None: that of the toy network.
            ctx: the context, or None: one with these `changes`.
            changes: fields of the context.

        Raises:
            Fault: the method raised.
        """
        teacher = toy_network() if teacher is None else teacher
        ctx = ctx or self.context(seed, card=card, **changes)
        method = self.instance()
        with blamed("synthesize"), seeded(ctx.seed("synthesis", "global")), one_thread():
            source = method.synthesize(teacher, ctx)
        return Run(teacher, source, ctx)

    def drawn(self, run: Run, size: int = BATCH) -> Batch:
        """Draws a batch; a live source learns a few steps first.

        Raises:
            Fault: the source raised, or gave something else.
        """
        with blamed("the source"), seeded(run.ctx.seed("drawing")), one_thread():
            if is_live(run.source):
                for _ in range(LIVE_STEPS):
                    run.source.train_step(size)
            return run.source.sample(size)

    def quantized(self, run: Run, label: str, scheme: Scheme, ctx: ToyContext | None = None) -> nn.Module:
        """Runs a quantizer as the host does.

        Args:
            run: teacher and source.
            label: a shared quantizer; empty: the method's own `quantize`.
            scheme: what to quantize.
            ctx: the context; None: a fresh one.

        Returns:
            The student.

        Raises:
            Fault: it raised, or returned something else.
        """
        quantizer = self.quantizer(label)
        ctx = ctx or ToyContext(card=run.ctx.card, budget=run.ctx.budget, root_seed=run.ctx.root_seed)
        ctx.bits, ctx.shared = scheme, quantizer.quantize
        what = f"quantizer '{label}' with its source" if label else "quantize"
        with blamed(what), seeded(ctx.seed("quantization", "global")), one_thread():
            if label:
                student: nn.Module = quantizer.quantize(run.teacher, run.source, ctx)
            else:
                student = self.instance().quantize(run.teacher, run.source, ctx)
        if not isinstance(student, nn.Module):
            raise Fault(
                f"{what} returned a {type(student).__name__}", "return a student made by dfqbench.quant.prepare"
            )
        return student

    @cached_property
    def first(self) -> Run:
        """A run that several checks read and none changes."""
        return self.synthesized()

    @cached_property
    def students(self) -> Mapping[str, nn.Module]:
        """Students by `quantizer scheme`: the method's own, and one of every built-in quantizer and protocol."""
        from dfqbench.quantizers import BUILTIN

        found = {}
        for label in ("", *(offer.name for offer in BUILTIN)):
            for scheme in ("w4a4@gdfq", "w3a5@deploy"):
                parsed = parse_scheme(scheme)
                bits = parsed if self.method_class.depends_on_bits else None
                run = self.synthesized(ctx=dataclasses.replace(self.context(), bits=bits))
                found[f"{label or 'its own quantize'} under {scheme}"] = self.quantized(run, label, parsed)
        return found

    @cached_property
    def dry_run(self) -> DryRun:
        """A run in a process of its own."""
        return run_in_sandbox(self.offer, self.plugins.files, self.limit)


@contextmanager
def blamed(what: str, hint: str = "") -> Iterator[None]:
    """Turns whatever plugin code raises into a fault.

    Raises:
        Fault: the block raised.
    """
    try:
        yield
    except Fault:
        raise
    except DfqError as error:
        raise Fault(f"{what} raised {type(error).__name__}: {error.message}", error.hint or hint) from error
    except PLUGIN_FAILURES as error:
        text = " ".join(str(error).split())[:300]
        place = _place(error)
        raise Fault(f"{what} raised {type(error).__name__}: {text}{place}", hint or "repair it there") from error


def _place(error: BaseException) -> str:
    """The innermost line that is neither the host's nor torch's, else the innermost."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(part in frame.filename.replace("\\", "/") for part in _FOREIGN)]
    frame = (own or frames)[-1] if frames else None
    return "" if frame is None else f" ({frame.filename}, line {frame.lineno})"


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread in the block: same seed, same bits holds for a fixed number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def as_saved(state: Any, what: str) -> Any:
    """A state after a trip to disk: saved, and loaded with `weights_only`.

    Raises:
        Fault: it cannot be saved, or not be loaded so.
    """
    import io

    stream = io.BytesIO()
    hint = "keep tensors, numbers, strings, and dicts, lists and tuples of these in it"
    with blamed(f"saving {what}", hint):
        torch.save(state, stream)
    stream.seek(0)
    try:
        return torch.load(stream, weights_only=True)
    except Exception as error:
        text = " ".join(str(error).split())
        kind = text.partition("Unsupported global: GLOBAL ")[2].partition(" ")[0] or text[:160]
        raise Fault(f"{what} does not load with weights_only=True: it holds {kind}", hint) from error


def same(one: Any, other: Any) -> bool:
    """Whether two pieces of plain data are equal, tensors bit for bit."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
