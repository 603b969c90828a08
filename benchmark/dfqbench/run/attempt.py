"""One attempt at a cell, inside the worker: setup, synthesis, quantization, and saving the student."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from dfqbench.api.batch import SampleSource, is_live
from dfqbench.api.budget import budget_named
from dfqbench.api.errors import NonFiniteError, PluginError, Skip
from dfqbench.api.method import Method, Quantizer
from dfqbench.api.precision import Precision
from dfqbench.grid.choice import REAL
from dfqbench.grid.params import build_params
from dfqbench.models.build import build_teacher
from dfqbench.plugins import Plugins, load_plugins
from dfqbench.quant.scheme import Scheme
from dfqbench.quant.student import Student, save_student
from dfqbench.run.checkpoint import Checkpoints
from dfqbench.run.clock import Clock
from dfqbench.run.context import REPORT_EVERY, HostContext
from dfqbench.run.evaluate import accuracy, predict
from dfqbench.run.flag import StopFlag
from dfqbench.run.guard import DataGuard
from dfqbench.run.job import Job
from dfqbench.run.keeper import Account, StateKeeper
from dfqbench.run.memory import peak_mib, reset_peak
from dfqbench.run.meter import Counts, counting, metered
from dfqbench.run.rng import seeded
from dfqbench.run.source import load_source, save_source, shared_state
from dfqbench.synth.source import FixedSource
from dfqbench.targets.evaluation import load_evaluation
from dfqbench.targets.spec import DatasetSpec, ModelSpec

if TYPE_CHECKING:
    from dfqbench.run.channel import Sink

KEPT_IMAGES = 64
IMAGES_FILE = "images.safetensors"
WORK = "work"
"""The part of the attempt's folder that plugin code may write to."""
WARM_STEPS = 3
"""Steps of a probe that are not timed, and the fewest that are."""


class ProbeDone(BaseException):
    """Ends a probe from within `progress`; no plugin's `except Exception` can hold it."""


class Attempt:
    """Runs a job from the teacher to the saved student.

    Attributes:
        phase: the phase under way.
        plugin: whose code is running, or empty.
    """

    def __init__(self, job: Job, channel: Sink, flag: StopFlag | None = None) -> None:
        self.phase = "setup"
        self.plugin = ""
        self.clock = _device_clock(torch.device(job.device))
        self.counts = Counts()
        self.flags: list[str] = []
        self.peaks: dict[str, float] = {}
        self._job = job
        self._channel = channel
        self._context: HostContext | None = None
        self._folder = Path(job.attempt)
        self._probe_begin = 0.0
        self._probe_step = 0
        self._source_kind: str | None = None
        self._reused: dict[str, Any] | None = None
        run = Path(job.run) if job.run else None
        self._guard = DataGuard((Path(path) for path in job.guarded), run, self._folder / WORK)
        self._flag = flag or StopFlag()
        self._resumed = 0
        self._wall_before = 0.0
        self._device = torch.device(job.device)
        self.keeper = StateKeeper(
            self._checkpoints(),
            self._flag,
            Account(self._account, self._go_on),
            clock=self.clock,
            guard=self._guard,
            warn=lambda text: channel.send("warning", message=text),
        )

    @property
    def step(self) -> int | None:
        """Last step that the plugin reported in this phase, or None."""
        return self._context.steps if self._context is not None and self._context.steps else None

    def run(self) -> dict[str, Any]:
        """Runs every phase.

        Returns:
            Seconds, counts, peaks, flags and checks, as plain data for the record.
        """
        job = self._job
        torch.set_num_threads(job.threads)
        device = torch.device(job.device)
        model = ModelSpec.from_dict(job.model)
        self._channel.send("phase", name="setup")
        with self._guard.watching():
            plugins = load_plugins([Path(path) for path in job.plugin_files])
        teacher = build_teacher(model, device, {name: offer.load for name, offer in plugins.models.items()})
        with self._guard.watching():
            method = self._method(plugins)
            quantizer = self._quantizer(plugins)
        self._check_requirements(method, teacher)
        self.keeper.load(device)
        self.clock.add("setup", time.monotonic() - job.started)
        with counting(teacher, self.counts):
            source = self._synthesis(method, teacher, model)
            student = self._quantization(method, quantizer, teacher, source, model=model)
        self.phase = "saving"
        self._keep(student, source, model)
        evaluation = None if isinstance(student, Student) else self._evaluated_here(student, teacher, model)
        return self.so_far() | {"evaluation": evaluation}

    def so_far(self) -> dict[str, Any]:
        """What the attempt has cost and shown until now, as plain data for the record."""
        return {
            "seconds": self.clock.seconds,
            "counts": self.counts.as_dict(),
            "peak_mib": self.peaks,
            "flags": self.flags,
            "source_kind": self._source_kind,
            "reused": self._reused,
            "real_data_opened": list(self._guard.hits),
            "wrote_outside": list(self._guard.writes),
            "resumed": self._resumed,
            "wall_before": self._wall_before,
        }

    def _checkpoints(self) -> Checkpoints | None:
        job = self._job
        if not job.checkpoints or job.probe_seconds:
            return None
        return Checkpoints(Path(job.checkpoints), {"environment": job.environment}, job.checkpoint_every)

    def _account(self) -> dict[str, Any]:
        """What the attempt has cost until now, for a checkpoint."""
        found = self.so_far() | {"seconds": self.clock.so_far()}
        found["peak_mib"] = self.peaks | {self.phase: self._peak()}
        found["wall_before"] = self._wall_before + time.monotonic() - self._job.started
        return found

    def _go_on(self, account: Mapping[str, Any]) -> None:
        """Takes over what an earlier process of this cell had spent when it kept its state."""
        self.clock.go_on_from(account["seconds"])
        for name, count in account["counts"].items():
            setattr(self.counts, name, count)
        self.peaks = dict(account["peak_mib"])
        self.flags = list(account["flags"])
        self._source_kind = account["source_kind"]
        self._reused = account["reused"]
        self._guard.hits[:] = dict.fromkeys([*account["real_data_opened"], *self._guard.hits])
        self._guard.writes[:] = dict.fromkeys([*account["wrote_outside"], *self._guard.writes])
        self._resumed = account["resumed"] + 1
        self._wall_before = account["wall_before"]

    def _peak(self) -> float:
        """Peak memory of the phase, that of earlier processes included."""
        return max(peak_mib(self._device), self.peaks.get(self.phase, 0.0))

    def _method(self, plugins: Plugins) -> Method | None:
        if self._job.method == REAL:
            return None
        self.plugin = self._job.method
        kind = plugins.method_class(self._job.method)
        return kind(build_params(kind.params_type, self._job.method_params, self._job.method))

    def _quantizer(self, plugins: Plugins) -> Quantizer:
        kind = plugins.quantizer_class(self._job.quantizer)
        return kind(build_params(kind.params_type, self._job.quantizer_params, self._job.quantizer))

    def _check_requirements(self, method: Method | None, teacher: nn.Module) -> None:
        norms = [m for m in teacher.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if method is not None and method.requires.batchnorm and not any(m.running_mean is not None for m in norms):
            raise Skip(f"{method.name} needs BatchNorm statistics, and this network has none")

    def _synthesis(self, method: Method | None, teacher: nn.Module, model: ModelSpec) -> SampleSource:
        """The source, made or taken from an earlier cell."""
        device = torch.device(self._job.device)
        self._enter("synthesis")
        with self._guard.watching():
            packages = {type(method).__module__.partition(".")[0]}
            shared = load_source(Path(self._job.source), device, self._job.accepted_environment, packages)
        if shared is not None:
            source, self._reused = shared
            self._source_kind = "fixed"
            self._channel.send("source", kind="fixed", shared=True)
            return source
        if method is None:
            raise PluginError("the images of the real-data control were not prepared")
        scheme = Scheme.from_dict(self._job.scheme) if method.depends_on_bits else None
        self._context = context = self._make_context("synthesis", model, scheme, None)
        reset_peak(device)
        try:
            with seeded(context.seed("global")), self._guard.watching(), self.clock.phase("synthesis"):
                source = method.synthesize(teacher, context)
        except ProbeDone:
            # Enough was timed; any images serve to time the quantizer.
            return FixedSource(torch.randn(KEPT_IMAGES, *model.card.input_size, device=device))
        self.peaks["synthesis"] = self._peak()
        if not callable(getattr(source, "sample", None)):
            raise PluginError(f"synthesize returned a {type(source).__name__}", "return a source with `sample`")
        self.counts.source_steps += context.steps
        self._source_kind = "live" if is_live(source) else "fixed"
        saved = False
        if not is_live(source) and not self._job.probe_seconds:
            cost = {
                "seconds": self.clock.seconds["synthesis"],
                "counts": self.counts.as_dict(),
                "peak_mib": self.peaks["synthesis"],
            }
            with self._guard.watching():
                state = shared_state(source)
            folder, environment = Path(self._job.source), self._job.environment
            saved = state is not None and save_source(source, folder, environment, cost, state)
        self._channel.send("source", kind=self._source_kind, shared=saved)
        self.keeper.remember_synthesis(device)
        return source

    def _quantization(
        self,
        method: Method | None,
        quantizer: Quantizer,
        teacher: nn.Module,
        source: SampleSource,
        *,
        model: ModelSpec,
    ) -> nn.Module:
        device = torch.device(self._job.device)
        self._enter("quantization")
        if is_live(source) and self._job.quantizer == "calibrate":
            self.flags.append("generator_alone")
        scheme = Scheme.from_dict(self._job.scheme)
        self._context = context = self._make_context("quantization", model, scheme, quantizer.quantize)
        handed = metered(source, self.clock, self.counts, tuple(model.card.input_size))
        reset_peak(device)
        with (
            seeded(context.seed("global")),
            self._guard.watching(),
            self.clock.phase("quantization", inside="synthesis"),
        ):
            if self._job.own_quantize and method is not None:
                student: nn.Module = method.quantize(teacher, handed, context)
            else:
                student = quantizer.quantize(teacher, handed, context)
        self.peaks["quantization"] = self._peak()
        if not isinstance(student, nn.Module):
            raise PluginError(f"quantize returned a {type(student).__name__}", "return a student made by prepare()")
        handed.check()
        _check_finite(student)
        if isinstance(student, Student):
            self.counts.student_images = student.images_seen
        return student

    def _keep(self, student: nn.Module, source: SampleSource, model: ModelSpec) -> None:
        """Saves the student for evaluation elsewhere, and some images to look at."""
        if isinstance(student, Student):
            save_student(student, self._folder, model.as_dict())
        try:
            with seeded(0), self._guard.watching():
                images = source.sample(KEPT_IMAGES).images
        except Exception:
            self.flags.append("images_not_kept")
        else:
            save_file({"images": images.detach().cpu().contiguous()}, self._folder / IMAGES_FILE)

    def _evaluated_here(self, student: nn.Module, teacher: nn.Module, model: ModelSpec) -> dict[str, Any]:
        """Evaluates a module that only the plugin's code can run; its operands cannot be checked, and it is flagged."""
        self.flags.append("plugin_student")
        device = torch.device(self._job.device)
        begin = time.monotonic()
        data = load_evaluation(DatasetSpec.from_dict(self._job.dataset), model.card, self._job.limit)
        found = accuracy(predict(student.eval(), data, device), predict(teacher, data, device), data)
        unchecked: dict[str, Any] = {
            "coverage": None,
            "violations": [],
            "levels_ok": None,
            "peak_mib": peak_mib(device),
        }
        return found | unchecked | {"seconds": time.monotonic() - begin}

    def _make_context(self, phase: str, model: ModelSpec, scheme: Scheme | None, shared: Any) -> HostContext:
        workdir = self._folder / WORK
        workdir.mkdir(exist_ok=True)
        return HostContext(
            phase=phase,
            device=torch.device(self._job.device),
            card=model.card,
            budget=budget_named(self._job.budget),
            scheme=scheme,
            seed_key=self._job.seed_key,
            workdir=workdir,
            report=self._report,
            report_every=0.0 if self._job.probe_seconds else REPORT_EVERY,
            shared_quantize=shared,
            keeper=self.keeper,
            restored=self.keeper.restored(),
            precision=Precision(self._job.precision),
        )

    def _enter(self, phase: str) -> None:
        self.phase = phase
        self._context = None
        self._probe_begin = 0.0
        self.keeper.enter(phase)
        self._channel.send("phase", name=phase)

    def _report(self, step: int, total: int, scalars: dict[str, float]) -> None:
        if self._job.probe_seconds:
            self._probe(step, total)
        self._channel.send("progress", phase=self.phase, step=step, total=total, scalars=scalars)

    def _probe(self, step: int, total: int) -> None:
        """Extrapolates the phase's time from its first steps and ends it."""
        now = time.monotonic()
        if step <= WARM_STEPS or not self._probe_begin:
            # The first steps pay for warm-up; they are left out.
            self._probe_begin, self._probe_step = now, step
            return
        spent, steps = now - self._probe_begin, step - self._probe_step
        if step < total and steps >= WARM_STEPS and spent >= self._job.probe_seconds:
            self._channel.send("probe", phase=self.phase, seconds=spent / steps * total)
            raise ProbeDone


def _check_finite(student: nn.Module) -> None:
    """Refuses a student with a parameter or range that is not a number: its accuracy would mean nothing."""
    for name, value in student.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise NonFiniteError(f"the student's {name}")


def _device_clock(device: torch.device) -> Clock:
    if device.type != "cuda":
        return Clock()
    return Clock(
        synchronize=lambda: torch.cuda.synchronize(device),
        make_event=lambda: torch.cuda.Event(enable_timing=True),  # type: ignore[no-untyped-call, arg-type, return-value]
    )
