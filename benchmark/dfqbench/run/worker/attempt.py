"""One attempt at a cell, inside the worker: setup, synthesis, quantization, and saving the student."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dfqbench.accel import set_kernels
from dfqbench.accel.cuda_graph import graphed_steps
from dfqbench.api.batch import SampleSource, is_live
from dfqbench.api.budget import budget_named
from dfqbench.api.errors import PluginError, Skip
from dfqbench.api.method import Method, Quantizer
from dfqbench.api.precision import Precision
from dfqbench.grid.choice import REAL
from dfqbench.grid.params import build_params
from dfqbench.models.build import build_teacher
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.quant.scheme import Scheme
from dfqbench.quant.student import Student, save_student
from dfqbench.run.execute.events import EventSink, Phase, PhaseStarted, Probed, Progress, SourceReady, Warned
from dfqbench.run.execute.job import Job
from dfqbench.run.store.source_cache import load_source, save_source, shared_state
from dfqbench.run.store.training_folder import Snapshots, Timeline, TrainingFolder
from dfqbench.run.worker.accounting import SHARED, Costs
from dfqbench.run.worker.artifacts import KEPT_IMAGES, check_finite, evaluated_here, save_images
from dfqbench.run.worker.checkpointer import Account, StateKeeper
from dfqbench.run.worker.checkpoints import Checkpoints
from dfqbench.run.worker.context import REPORT_EVERY, ForStudent, HostContext
from dfqbench.run.worker.data_guard import DataGuard
from dfqbench.run.worker.device_setup import compute_on
from dfqbench.run.worker.first_steps import FirstSteps, ProbeDone
from dfqbench.run.worker.instrumented_source import MeteredSource, SharedCounts, counting, metered
from dfqbench.run.worker.memory import reset_peak
from dfqbench.run.worker.rng import seeded
from dfqbench.run.worker.stop_flag import StopFlag
from dfqbench.synth.source import FixedSource
from dfqbench.targets.spec import ModelSpec

if TYPE_CHECKING:
    from dfqbench.run.worker.instrumented_source import Timed, Timelines

WORK = "work"
"""The part of the attempt's folder that plugin code may write to."""


class Attempt:
    """Runs a job from the teacher to the saved student: `begin` makes the source, `finish` the student.

    Attributes:
        phase: the phase under way.
        plugin: whose code is running, or empty.
        costs: what it has cost and shown until now.
        counters: raise the counts of the attempts for which work is done; one for all of a worker.
        plugins: what is offered; set by `begin` or `join`.
        teacher: the full-precision network; set by `begin` or `join`.
        source: set by `begin` or `join`.
        has_saved_source: whether the source is on disk, for other cells.

    Args:
        job: what to do.
        events: takes the events.
        flag: whether to stop.
        leader: the attempt whose worker takes this one along, or None: it has the worker to itself.
    """

    plugins: Plugins
    teacher: nn.Module
    source: SampleSource
    _method: Method | None
    quantizer: Quantizer
    counters: SharedCounts

    def __init__(self, job: Job, events: EventSink, flag: StopFlag, leader: Attempt | None = None) -> None:
        self.phase = Phase.SETUP
        self.plugin = ""
        self._job = job
        self._events = events
        self._context: HostContext | None = None
        self._folder = Path(job.attempt)
        self._first_steps = FirstSteps(job.probe_seconds, lambda seconds: events.send(Probed(self.phase, seconds)))
        self._leader = leader
        # One guard for all of a worker: they run the same plugin's code, and what it opens spoils every record.
        self._guard: DataGuard = _guard(job) if leader is None else leader._guard
        self._flag = flag
        self.has_saved_source = False
        self._device = torch.device(job.device)
        self.costs = Costs(self._device, self._guard, started=job.started, shares_gpu=job.shares_gpu)
        self.counters = SharedCounts(self.costs.counts) if leader is None else leader.counters
        self._model = ModelSpec.from_dict(job.model)
        self.keeper = StateKeeper(
            self._checkpoints(),
            self._flag,
            Account(lambda: self.costs.account(self.phase), self.costs.go_on_from),
            student=str(job.scheme["label"]),
            clock=self.costs.clock,
            guard=self._guard,
            warn=lambda text: events.send(Warned(text)),
        )
        self._training = TrainingFolder(self._folder)
        self._snapshots: Snapshots | None = None
        self._timeline: Timeline | None = None

    @property
    def step(self) -> int | None:
        """Last step that the plugin reported in this phase, or None."""
        return self._context.steps if self._context is not None and self._context.steps else None

    def begin(self) -> None:
        """Runs setup and synthesis."""
        self._set_up()
        self.counters.present = [self.costs.counts]
        with counting(self.teacher, self.counters):
            self.source = self._synthesis()

    def join(self, leader: Attempt) -> bool:
        """Takes the live source that another attempt has made, instead of making one.

        Returns:
            Whether both begin, or go on from the same boundary.
        """
        self._set_up()
        self.source = leader.source
        return self.keeper.join(leader.keeper)

    def share(self, group: Sequence[Attempt]) -> None:
        """Shares source and worker with others; the first of them has made the source."""
        self.costs.share(Path(self._job.source).name, [other.costs for other in group])

    def finish(self) -> dict[str, Any]:
        """Makes the student, and keeps it.

        Returns:
            Seconds, counts, peaks, flags and checks, as plain data for the record.
        """
        self.counters.present = [self.costs.counts]
        return self.keep(self._quantization())

    def keep(self, student: nn.Module) -> dict[str, Any]:
        """Keeps the student; returns what `finish` returns."""
        self.phase = Phase.SAVING
        with self.costs.saving():
            self._keep(student)
            evaluation = None if isinstance(student, Student) else self._evaluated_here(student)
        return self.costs.so_far() | {"evaluation": evaluation}

    @property
    def shares_its_quantizer(self) -> bool:
        """Whether the student is the shared quantizer's work alone, so that it can be made beside others."""
        if not self._job.own_quantize or self._job.method == REAL:
            return True
        return self.plugins.method_class(self._job.method).quantize is Method.quantize

    @property
    def trains(self) -> bool:
        """Whether the quantizer takes long enough for a process of its own."""
        return self.plugins.quantizer_class(self._job.quantizer).trains

    def _set_up(self) -> None:
        job = self._job
        begin = job.started
        if self._leader is None:
            torch.set_num_threads(job.threads)
            compute_on(self._device)
            set_kernels(job.device, fast=Precision(job.precision).rearranges)
            self._events.send(PhaseStarted(Phase.SETUP))
            with self._guard.watching():
                self.plugins = load_plugins([Path(path) for path in job.plugin_files])
            families = {name: offer.load for name, offer in self.plugins.models.items()}
            self.teacher = build_teacher(self._model, self._device, families)
        else:
            self.plugins, self.teacher = self._leader.plugins, self._leader.teacher
        with self._guard.watching():
            self._method = self._make_method()
            self.quantizer = self._make_quantizer()
        self._check_requirements()
        if self.trains or not (self._method is None or self._method.control):
            # The first optimizer would load it, and a second or two of that would count as synthesis.
            importlib.import_module("torch._dynamo")
        self.keeper.load(self._device)
        self.costs.clock.add("setup", time.monotonic() - begin)

    def _checkpoints(self) -> Checkpoints | None:
        job = self._job
        if not job.checkpoints or job.probe_seconds:
            return None
        return Checkpoints(Path(job.checkpoints), {"environment": job.environment}, job.checkpoint_every)

    def _make_method(self) -> Method | None:
        if self._job.method == REAL:
            return None
        self.plugin = self._job.method
        kind = self.plugins.method_class(self._job.method)
        return kind(build_params(kind.params_type, self._job.method_params, self._job.method))

    def _make_quantizer(self) -> Quantizer:
        kind = self.plugins.quantizer_class(self._job.quantizer)
        return kind(build_params(kind.params_type, self._job.quantizer_params, self._job.quantizer))

    def _check_requirements(self) -> None:
        method = self._method
        norms = [m for m in self.teacher.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if method is not None and method.requires.batchnorm and not any(m.running_mean is not None for m in norms):
            raise Skip(f"{method.name} needs BatchNorm statistics, and this network has none")

    def _synthesis(self) -> SampleSource:
        """The source, made or taken from an earlier cell."""
        method, device, model = self._method, self._device, self._model
        self._enter(Phase.SYNTHESIS)
        with self._guard.watching():
            packages = {type(method).__module__.partition(".")[0]}
            shared = load_source(Path(self._job.source), device, self._job.accepted_environment, packages)
        if shared is not None:
            source, self.costs.reused = shared
            if self.costs.reused.get("shares_gpu"):
                self.costs.flag(SHARED)
            self.has_saved_source = True
            self.costs.source_kind = "fixed"
            self._events.send(SourceReady(shared=True))
            return source
        if method is None:
            raise PluginError("the images of the real-data control were not prepared")
        scheme = Scheme.from_dict(self._job.scheme) if method.depends_on_bits else None
        self._context = context = self._make_context(scheme)
        reset_peak(device)
        try:
            with seeded(context.seed("global")), self._guard.watching(), self.costs.clock.phase("synthesis"):
                source = method.synthesize(self.teacher, context)
        except ProbeDone:
            # Enough was timed; any images serve to time the quantizer.
            return FixedSource(torch.randn(KEPT_IMAGES, *model.card.input_size, device=device))
        self.costs.peaks["synthesis"] = self.costs.peak(self.phase)
        if not callable(getattr(source, "sample", None)):
            raise PluginError(f"synthesize returned a {type(source).__name__}", "return a source with `sample`")
        self.costs.counts.source_steps += context.steps
        self.costs.source_kind = "live" if is_live(source) else "fixed"
        saved = False
        if not is_live(source) and not self._job.probe_seconds:
            cost = {
                "seconds": self.costs.clock.seconds["synthesis"],
                "counts": self.costs.counts.as_dict(),
                "peak_mib": self.costs.peaks["synthesis"],
                "shares_gpu": SHARED in self.costs.flags,
            }
            with self._guard.watching():
                state = shared_state(source)
            folder, environment = Path(self._job.source), self._job.environment
            saved = state is not None and save_source(source, folder, environment, cost, state)
        self.has_saved_source = saved
        self._events.send(SourceReady(shared=saved))
        self.keeper.remember_synthesis(device)
        return source

    def _quantization(self) -> nn.Module:
        method = self._method
        context = self.open_quantization()
        source = self.metered(self.costs.clock, self.timelines)
        with self.quantizing(context), self.costs.clock.phase("quantization", inside="synthesis"):
            if self._job.own_quantize and method is not None:
                student: nn.Module = method.quantize(self.teacher, source, context)
            else:
                student = self.quantizer.quantize(self.teacher, source, context)
        return self.checked(student, source)

    def metered(self, clock: Timed, timelines: Timelines) -> MeteredSource:
        """The source, with its calls timed and counted."""
        return metered(self.source, clock, self.counters, tuple(self._model.card.input_size), timelines)

    @contextmanager
    def quantizing(self, context: HostContext) -> Iterator[None]:
        """Prepares for a quantizer's code: global random generators, data guard, counts and peak memory."""
        reset_peak(self._device)
        with (
            seeded(context.seed("global")),
            self._guard.watching(),
            counting(self.teacher, self.counters),
        ):
            yield

    def timelines(self) -> list[Timeline]:
        """Where images of the source's training are kept."""
        return [] if self._timeline is None else [self._timeline]

    def open_quantization(self, for_student: ForStudent | None = None) -> HostContext:
        """Enters the phase.

        Args:
            for_student: runs the parts of a loop over several students that belong to this one.
        """
        source = self.source
        self._enter(Phase.QUANTIZATION)
        if is_live(source) and self._job.quantizer == "calibrate":
            self.costs.flag("generator_alone")
        scheme = Scheme.from_dict(self._job.scheme)
        self.costs.source_images = len(source) if isinstance(source, Sized) else None
        if not self._job.probe_seconds:
            if not self.costs.resumed:
                self._training.clear()
            self._timeline = Timeline(self._training, self.aside) if is_live(source) else None
            if self._job.snapshots:
                self._snapshots = Snapshots(self._training, self._job.snapshots, self.aside)
        self._context = self._make_context(scheme, self.quantizer.quantize, for_student)
        return self._context

    def checked(self, student: nn.Module | None, source: MeteredSource) -> nn.Module:
        """Ends the phase, checks what it gave, and returns it.

        Raises:
            PluginError: the quantizer gave no student.
            NonFiniteError: the student or an image of the source is not finite.
        """
        self.costs.peaks["quantization"] = self.costs.peak(self.phase)
        if not isinstance(student, nn.Module):
            raise PluginError(f"quantize returned a {type(student).__name__}", "return a student made by prepare()")
        source.check()
        check_finite(student)
        if isinstance(student, Student):
            self.costs.counts.student_images = student.images_seen
        if self._snapshots is not None and self._snapshots.refused:
            self.costs.flag("snapshots_not_kept")
        return student

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Pause the clock and the data guard while the host does its own work."""
        with self.costs.clock.paused(), self._guard.off():
            yield

    def _keep(self, student: nn.Module) -> None:
        """Saves the student for evaluation elsewhere, and some images to look at."""
        if isinstance(student, Student):
            save_student(student, self._folder, self._model.as_dict())
        try:
            with seeded(0), self._guard.watching():
                batch = self.source.sample(KEPT_IMAGES)
        except Exception:
            self.costs.flag("images_not_kept")
        else:
            save_images(batch, self._folder)

    def _evaluated_here(self, student: nn.Module) -> dict[str, Any]:
        """Evaluates a module that only the plugin's code can run; it is flagged."""
        self.costs.flag("plugin_student")
        return evaluated_here(student, self.teacher, self._job, self._device)

    def _make_context(
        self, scheme: Scheme | None, shared: Any = None, for_student: ForStudent | None = None
    ) -> HostContext:
        workdir = self._folder / WORK
        workdir.mkdir(exist_ok=True)
        return HostContext(
            phase=self.phase,
            device=torch.device(self._job.device),
            card=self._model.card,
            budget=budget_named(self._job.budget),
            scheme=scheme,
            seed_key=self._job.seed_key,
            workdir=workdir,
            report=self._report,
            report_every=0.0 if self._job.probe_seconds else REPORT_EVERY,
            shared_quantize=shared,
            snapshots=self._snapshots,
            timeline=self._timeline,
            keeper=self.keeper,
            restored=self.keeper.restored(),
            precision=Precision(self._job.precision),
            make_graphed=graphed_steps(self._device, self.counters),
            for_student=for_student,
        )

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._context = None
        self._first_steps.begin()
        self.keeper.enter(phase)
        self._events.send(PhaseStarted(phase))

    def _report(self, step: int, total: int, scalars: dict[str, float]) -> None:
        self._first_steps.step(step, total)
        self._events.send(Progress(self.phase, step, total, scalars))


def _guard(job: Job) -> DataGuard:
    folders = [job.attempt, *(member.attempt for member in job.members)]
    run = Path(job.run) if job.run else None
    return DataGuard((Path(path) for path in job.guarded), run, [Path(folder) / WORK for folder in folders])
