"""One attempt at a cell, inside the worker: setup, synthesis, quantization, and saving the student."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from dfqbench.accel import set_kernels
from dfqbench.accel.cuda_graph import graphed_steps
from dfqbench.api.batch import Batch, SampleSource, has_images, is_live
from dfqbench.api.budget import budget_named
from dfqbench.api.errors import Invalid, NonFiniteError, PluginError, Skip, Unavailable
from dfqbench.api.method import Method, Quantizer
from dfqbench.api.precision import Precision
from dfqbench.models.build import build_teacher
from dfqbench.models.spec import ModelSpec
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.plugins.params import build_params
from dfqbench.plugins.registry import REAL
from dfqbench.quant.scheme import Scheme
from dfqbench.quant.student import Student, prepare, save_student
from dfqbench.run.evaluate.accuracy import evaluate_module
from dfqbench.run.execute.cancellation import StopFlag
from dfqbench.run.execute.events import EventSink, Phase, PhaseStarted, Progress, SourceReady, Warned
from dfqbench.run.execute.job import Job
from dfqbench.run.store.files import IMAGES_FILE, REAL_IMAGES_FILE
from dfqbench.run.store.real_images import RealImages, save_first
from dfqbench.run.store.source_cache import load_source, save_source, shared_state
from dfqbench.run.store.training_folder import Snapshots, Timeline, TrainingFolder
from dfqbench.run.worker.accounting import GENERATOR_ALONE, Accounting
from dfqbench.run.worker.bit_plan import BitPlanning
from dfqbench.run.worker.checkpointer import Checkpointer, CheckpointFolder
from dfqbench.run.worker.confinement import Confinement
from dfqbench.run.worker.context import REPORT_EVERY, HostContext, RunPart
from dfqbench.run.worker.device_setup import compute_on, peak_mib, reset_peak, seeded
from dfqbench.run.worker.instrumented_source import InstrumentedSource, SharedCounts, instrumented_cls
from dfqbench.run.worker.plugin_checks import DataGuard, TeacherCheck
from dfqbench.run.worker.probe import Probe, ProbeDone
from dfqbench.synth.source import FixedSource
from dfqbench.targets.evaluation import load_evaluation
from dfqbench.targets.spec import DatasetSpec

WORK = "work"
"""The part of the attempt's folder that plugin code may write to."""
KEPT_IMAGES = 64
"""Images of the source that are saved with the student."""


class Attempt:
    """Run a job from the teacher to the saved student: `begin` makes the source, `finish` the student.

    Attributes:
        plugin: the method whose code is running, or empty.
        counts: counts of all attempts of the worker.
        teacher, method, quantizer, source: set by `begin` or `join`; the real-data control has no method.
        teacher_check: refuses a teacher that plugin code has changed.
        has_saved_source: whether the source is on disk, for other cells.

    Args:
        job: the job.
        events: receives the events.
        flag: whether to stop.
        first: the first attempt of a shared job, whose plugins, teacher and counts this one uses; None: this is it.
    """

    teacher: nn.Module
    teacher_check: TeacherCheck
    method: Method | None
    quantizer: Quantizer
    source: SampleSource
    _plugins: Plugins

    def __init__(self, job: Job, events: EventSink, flag: StopFlag, first: Attempt | None = None) -> None:
        self.phase = Phase.SETUP
        self.plugin = ""
        self.has_saved_source = False
        self._job = job
        self._events = events
        self._first = first
        self._folder = Path(job.attempt)
        self._device = torch.device(job.device)
        self._model = ModelSpec.from_dict(job.model)
        self._scheme = Scheme.from_dict(job.scheme)
        self._context: HostContext | None = None
        # One guard for a worker: its attempts run the same plugin's code, and what that opens concerns every record.
        if first is None:
            folders = [job.attempt, *(member.attempt for member in job.members)]
            results = Path(job.run) if job.run else None
            self._guard = DataGuard(map(Path, job.guarded), results, [Path(folder) / WORK for folder in folders])
            self.confinement = Confinement()
        else:
            self._guard, self.confinement = first._guard, first.confinement
        self.accounting = Accounting(
            self._device, self._guard, self.confinement, started=job.started, shared_flag=job.shared_flag
        )
        self.counts: SharedCounts = SharedCounts(self.accounting.counts) if first is None else first.counts
        keeps_states = job.checkpoints and not job.probe_seconds
        folder = CheckpointFolder(Path(job.checkpoints), job.environment, job.checkpoint_every)
        self.checkpointer = Checkpointer(
            folder if keeps_states else None,
            flag,
            self.accounting,
            student=str(job.scheme["label"]),
            warn=lambda text: events.send(Warned(text)),
        )
        self._training = TrainingFolder(self._folder)
        self._snapshots: Snapshots | None = None
        self._timeline: Timeline | None = None
        self._probe: Probe | None = None

    @property
    def step(self) -> int | None:
        """Last step that the plugin reported in this phase, or None."""
        return self._context.steps if self._context is not None and self._context.steps else None

    def begin(self) -> None:
        """Run setup and synthesis."""
        self._set_up()
        self.counts.active = [self.accounting.counts]
        with self.counts.counting(self.teacher):
            saved = self._load_source()
            self.source = self._synthesize() if saved is None else saved

    def join(self, first: Attempt) -> bool:
        """Use the live source of another attempt; return whether both begin, or continue from the same boundary."""
        self._set_up()
        self.source = first.source
        return self.checkpointer.join(first.checkpointer)

    def finish(self) -> dict[str, Any]:
        """Make and save the student, and return the record's plain data."""
        self.counts.active = [self.accounting.counts]
        context = self.open_quantization()
        source = self.instrumented_source(self.accounting.clock.source_call, self.keep_training_images)
        clock, method = self.accounting.clock, self.method
        with self.quantizing(context), clock.phase("quantization", source_name="synthesis"):
            planning = BitPlanning(self._job, self.teacher, method, self.accounting, self.counts, context)
            self._scheme = context.known_scheme = planning.planned_scheme(source)
            if self._job.own_quantize and method is not None:
                student: nn.Module = method.quantize(self.teacher, source, context)
            else:
                student = self.quantizer.quantize(self.teacher, source, context)
        return self.save(student, source, self.source.sample)

    def _set_up(self) -> None:
        job = self._job
        if self._first is None:
            torch.set_num_threads(job.threads)
            compute_on(self._device)
            set_kernels(job.device, fast=Precision(job.precision).rearranges)
            self._events.send(PhaseStarted(Phase.SETUP))
            if job.confined:
                self.confinement.confine(job)
            self._plugins = load_plugins([Path(path) for path in job.plugin_files], self._guard.importing)
            family = self._model.ref.partition(":")[0]
            for plugin in self._plugins.origins(job.method, job.quantizer, family, job.quantizer_params):
                self._guard.use(plugin)
            self.teacher = build_teacher(self._model, self._device, self._plugins.model_families)
            self.teacher_check = TeacherCheck(self.teacher)
        else:
            self._plugins, self.teacher = self._first._plugins, self._first.teacher
            self.teacher_check = self._first.teacher_check
        method = None
        with self._guard.watching():
            if job.method != REAL:
                self.plugin = job.method
                method_cls = self._plugins.method_class(job.method)
                method = method_cls(build_params(method_cls.params_type, job.method_params, job.method))
            quantizer_cls = self._plugins.quantizer_class(job.quantizer)
            self.quantizer = quantizer_cls(build_params(quantizer_cls.params_type, job.quantizer_params, job.quantizer))
        self.method = method
        norms = [m for m in self.teacher.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if method is not None and method.requires.batchnorm and all(norm.running_mean is None for norm in norms):
            raise Skip(f"{method.name} needs BatchNorm statistics, and this network has none")
        if self.quantizer.trains or not (method is None or method.control):
            # The first optimizer would load it, and a second or two of that would count as synthesis.
            importlib.import_module("torch._dynamo")
        self.checkpointer.load(self._device)
        self.accounting.clock.seconds["setup"] = time.monotonic() - job.started

    def _load_source(self) -> SampleSource | None:
        """Load the source that another cell has saved, if there is one."""
        self._enter(Phase.SYNTHESIS)
        packages = {type(self.method).__module__.partition(".")[0]}
        load = partial(load_source, Path(self._job.source), self._device, self._job.accepted_environment, packages)
        if self._job.method == REAL:
            # The host reads the control's images, as a part of the setup.
            begin = time.monotonic()
            saved = self.confinement.outside(load)
            self.accounting.clock.seconds["setup"] += time.monotonic() - begin
        else:
            with self._guard.watching():
                saved = load()
        if saved is None:
            return None
        source, cost = saved
        self.accounting.reuse(cost)
        self.has_saved_source = True
        self.accounting.source_kind = "fixed"
        self._events.send(SourceReady(shared=True))
        return source

    def _synthesize(self) -> SampleSource:
        method, accounting = self.method, self.accounting
        if method is None:
            raise PluginError("the images of the real-data control cannot be read", "look whether its data are there")
        self._context = context = self._make_context(self._scheme if method.depends_on_bits else None)
        reset_peak(self._device)
        try:
            with self.plugin_code(context), accounting.clock.phase("synthesis"):
                source = method.synthesize(self.teacher, context)
        except ProbeDone:
            # Enough was timed; any images serve to time the quantizer.
            return FixedSource(torch.randn(KEPT_IMAGES, *self._model.card.input_size, device=self._device))
        accounting.peaks["synthesis"] = accounting.peak(self.phase)
        if not callable(getattr(source, "sample", None)):
            raise PluginError(f"synthesize returned a {type(source).__name__}", "return a source with `sample`")
        accounting.counts.source_steps += context.steps
        accounting.source_kind = "live" if is_live(source) else "fixed"
        if not is_live(source) and not self._job.probe_seconds:
            self.has_saved_source = self._save_source(source)
        self._events.send(SourceReady(shared=self.has_saved_source))
        self.checkpointer.keep_synthesis(self._device)
        return source

    def _save_source(self, source: SampleSource) -> bool:
        with self._guard.watching():
            state = shared_state(source)
        if state is None or self._guard.hits or self._guard.writes:
            # Another cell that used images made with real data would not show how they came about.
            return False
        return save_source(source, Path(self._job.source), self._job.environment, self.accounting.source_cost(), state)

    def open_quantization(self, run_part: RunPart | None = None) -> HostContext:
        """Enter the phase, and return its context; `run_part` runs this student's parts of a shared loop."""
        self._enter(Phase.QUANTIZATION)
        live = is_live(self.source)
        if live and not self.quantizer.trains:
            self.accounting.flag(GENERATOR_ALONE)
        self.accounting.source_images = len(self.source) if isinstance(self.source, Sized) else None
        if not self._job.probe_seconds:
            if not self.accounting.resumed:
                self._training.clear()
            self._timeline = Timeline(self._training, self.accounting.untimed) if live else None
            if self._job.snapshots:
                self._snapshots = Snapshots(self._training, self._job.snapshots, self.accounting.untimed)
        self._context = self._make_context(self._scheme, self.quantizer.quantize, run_part)
        return self._context

    def keep_training_images(self, batch: Batch) -> None:
        """Keep images of a live source's training batch, if its step is one of those to keep."""
        if self._timeline is not None:
            self._timeline.offer(batch)

    def instrumented_source(
        self, source_call: Callable[[], AbstractContextManager[None]], on_training_batch: Callable[[Batch], object]
    ) -> InstrumentedSource:
        """Return the source with its calls timed and counted."""

        @contextmanager
        def checked_call() -> Iterator[None]:
            with self.teacher_check.call(), source_call():
                yield

        shape = tuple(self._model.card.input_size)
        return instrumented_cls(self.source)(self.source, checked_call, self.counts, shape, on_training_batch)

    @contextmanager
    def quantizing(self, context: HostContext) -> Iterator[None]:
        """Prepare for a quantizer's code: counts, peak memory and everything that plugin code needs."""
        reset_peak(self._device)
        with self.plugin_code(context), self.counts.counting(self.teacher):
            yield
        self.teacher_check.check_hooks()

    @contextmanager
    def plugin_code(self, context: HostContext) -> Iterator[None]:
        """Prepare for a phase of plugin code: global random generators, data guard, check of the teacher."""
        with self.teacher_check.phase(), seeded(context.seed("global")), self._guard.watching():
            yield

    def _checked(self, student: nn.Module | None, source: InstrumentedSource) -> nn.Module:
        self.accounting.peaks["quantization"] = self.accounting.peak(self.phase)
        if not isinstance(student, nn.Module):
            raise PluginError(
                f"quantize returned a {type(student).__name__}", "return a student of ctx.prepare(teacher)"
            )
        source.check()
        for name, tensor in student.state_dict().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise NonFiniteError(f"the student's {name}")
        if isinstance(student, Student):
            self.accounting.counts.student_images = student.images_seen
            if student.scheme != self._scheme:
                message = f"the student's scheme is {student.scheme.label}, its cell's is {self._scheme.label}"
                raise Invalid(message, "make it with ctx.prepare(teacher)")
        elif self._scheme.mixed is not None:
            raise Unavailable("mixed precision needs a student of ctx.prepare(teacher)", "run this method without it")
        if self._snapshots is not None and self._snapshots.refused:
            self.accounting.flag("snapshots_not_kept")
        return student

    def save(
        self, student: nn.Module | None, source: InstrumentedSource, sample: Callable[[int], Batch]
    ) -> dict[str, Any]:
        """Check the student, and save it with some images drawn by `sample`; return as `finish`.

        A student that only the plugin's code can run is evaluated at once, and flagged.

        Raises:
            PluginError: the quantizer returned no student.
            NonFiniteError: the student or an image of the source is not finite.
            Invalid: the student has another scheme than the cell, or plugin code has changed the teacher.
        """
        student = self._checked(student, source)
        self.phase = Phase.SAVING
        evaluation = None
        with self.accounting.saving():
            if isinstance(student, Student):
                save_student(student, self._folder, self._model.as_dict())
            self._save_images(sample)
            if not isinstance(student, Student):
                self.accounting.flag("plugin_student")
                evaluation = self._evaluate(student)
        return self.accounting.so_far() | {"evaluation": evaluation}

    def _save_images(self, sample: Callable[[int], Batch]) -> None:
        if not has_images(self.source):
            return
        try:
            with seeded(0), self._guard.watching(), self.teacher_check.call():
                batch = sample(KEPT_IMAGES)
        except Invalid:
            raise
        except Exception:
            self.accounting.flag("images_not_kept")
            return
        if isinstance(self.source, RealImages):
            save_first(self.source, KEPT_IMAGES, self._folder / REAL_IMAGES_FILE)
            return
        tensors = {"images": batch.images, "labels": batch.labels}
        kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items() if value is not None}
        save_file(kept, self._folder / IMAGES_FILE)

    def _evaluate(self, student: nn.Module) -> dict[str, Any]:
        """Evaluate a student that is no `Student` here; its passes are plugin code."""
        begin = time.monotonic()
        dataset = DatasetSpec.from_dict(self._job.dataset)
        data = self.confinement.outside(partial(load_evaluation, dataset, self._model.card, self._job.limit))
        usual = prepare(self.teacher, self._scheme, self._model.card)
        with self.teacher_check.phase(), ExitStack() as watched:
            student.register_forward_pre_hook(lambda *_: watched.enter_context(self._guard.watching()))
            student.register_forward_hook(lambda *_: watched.close())
            result = evaluate_module(student, self.teacher, usual, data, self._device)
        return result | {"peak_mib": peak_mib(self._device), "seconds": time.monotonic() - begin}

    def _make_context(
        self, scheme: Scheme | None, quantize: Any = None, run_part: RunPart | None = None
    ) -> HostContext:
        workdir = self._folder / WORK
        workdir.mkdir(exist_ok=True)
        return HostContext(
            phase=self.phase,
            device=self._device,
            card=self._model.card,
            budget=budget_named(self._job.budget),
            known_scheme=scheme,
            seed_key=self._job.seed_key,
            workdir=workdir,
            report=self._report,
            report_every=0.0 if self._job.probe_seconds else REPORT_EVERY,
            quantize=quantize,
            snapshots=self._snapshots,
            timeline=self._timeline,
            checkpointer=self.checkpointer,
            precision=Precision(self._job.precision),
            make_graphed=graphed_steps(self._device, self.counts),
            run_part=run_part,
        )

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._context = None
        self._probe = Probe(phase, self._job.probe_seconds, self._events) if self._job.probe_seconds else None
        self.checkpointer.enter(phase)
        self._events.send(PhaseStarted(phase))

    def _report(self, step: int, total: int, scalars: dict[str, float]) -> None:
        if self._probe is not None:
            self._probe.step(step, total)
        self._events.send(Progress(self.phase, step, total, scalars))
