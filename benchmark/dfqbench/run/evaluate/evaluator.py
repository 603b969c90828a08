"""The evaluator: the host's own process that reads real data, and never runs plugin code.

Run as `python -m dfqbench.run.evaluate.evaluator`. It answers one JSON request a line with one JSON object a line,
after lines of progress, and keeps the decoded evaluation set and the teachers' predictions between requests.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dfqbench.accel import using_kernels
from dfqbench.api.errors import DfqError, Invalid, Unavailable
from dfqbench.api.precision import Precision
from dfqbench.models.build import build_teacher
from dfqbench.models.spec import ModelSpec
from dfqbench.quant.coverage import measure_coverage
from dfqbench.quant.scheme import Scheme
from dfqbench.quant.student import Student, load_student
from dfqbench.quantizers.mixed_precision import check_planned
from dfqbench.run.evaluate.accuracy import Predictions, accuracy, percent, predict, predict_all
from dfqbench.run.execute.failure import describe_failure, is_interrupt
from dfqbench.run.execute.job import OnProgress
from dfqbench.run.plan.identity import canonical
from dfqbench.run.store.real_images import RealImages
from dfqbench.run.store.source_cache import save_source
from dfqbench.run.store.training_folder import TrainingFolder
from dfqbench.run.worker.device_setup import compute_on, peak_mib, reset_peak
from dfqbench.targets.evaluation import EvaluationSet, choose_training, load_evaluation
from dfqbench.targets.spec import DatasetSpec

CHECKED_IMAGES = 4
"""Images with which operands are checked; they are on their quantization levels for every image or for none."""


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What batch systems send to every process of a job; the evaluator ends with its parent, which kills it or closes its
standard input."""
PROGRESS_EVERY = 0.5
"""Seconds between two reports of the images evaluated."""


class _Reporting(EvaluationSet):
    """An evaluation set that reports how many of its images have been used."""

    def __init__(self, data: EvaluationSet, on_progress: OnProgress) -> None:
        vars(self).update(vars(data))
        self._on_progress = on_progress

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Iterate over the set as its class does."""
        done = 0
        for images, labels in super().batches(size, device):
            yield images, labels
            done += len(labels)
            self._on_progress(done, self.n)


class Evaluator:
    """Answer requests.

    Attributes:
        on_progress: takes how many of how many images are evaluated, after each batch; or None.

    Args:
        threads: CPU threads.
        device: where networks run.
    """

    def __init__(self, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        compute_on(self._device)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise Unavailable("this build of torch sees no CUDA device", "run with --device cpu")
        self._operations = {
            "baseline": self._baseline,
            "evaluate": self._evaluate,
            "snapshots": self._evaluate_snapshots,
            "real": self._make_real_source,
            "environment": self._describe_environment,
        }
        self.on_progress: OnProgress | None = None
        self._sets: dict[str, EvaluationSet] = {}
        self._teachers: dict[str, Predictions] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request; an error is part of the answer."""
        begin = time.monotonic()
        try:
            precision = Precision(request.get("precision", Precision.FLOAT32))
            with using_kernels(str(self._device), fast=precision.rearranges):
                result = self._operations[request["op"]](request)
        except BaseException as error:
            return _answer(error)
        return result | {"seconds": time.monotonic() - begin}

    def _baseline(self, request: dict[str, Any]) -> dict[str, Any]:
        """Accuracy and size of the full-precision network."""
        data, model = self._data(request), ModelSpec.from_dict(request["model"])
        return {
            "fp_top1": percent(self._teacher(request, model, data).correct),
            "n": data.n,
            "subset": data.subset,
            "parameters": sum(p.numel() for p in build_teacher(model, "cpu", request["families"]).parameters()),
        }

    def _evaluate(self, request: dict[str, Any]) -> dict[str, Any]:
        """Evaluate and check the students of several attempts at one network, in one pass over the data."""
        reset_peak(self._device)
        data, model = self._data(request), ModelSpec.from_dict(request["model"])
        teacher = self._teacher(request, model, data)
        images = next(iter(data.batches(CHECKED_IMAGES, self._device)))[0]
        answers: list[dict[str, Any]] = []
        students: list[Student] = []
        for attempt in request["attempts"]:
            try:
                # The user named the model, and this run's own worker wrote the folder.
                student = self._load(attempt, request, images, trusted=model.trusted)
                measured = measure_coverage(student, images)
                checks = {"violations": measured.violations, "levels_ok": measured.levels_ok}
                layers = {name: bits.weight for name, bits in student.layers.items()} if student.scheme.mixed else {}
                answers.append({"coverage": measured.as_dict(), **checks, "layers": layers})
                students.append(student)
            except BaseException as error:
                answers.append(_answer(error))
        predictions = predict_all(students, data, self._device) if students else []
        loaded = [answer for answer in answers if "error" not in answer]
        for answer, prediction in zip(loaded, predictions, strict=True):
            answer.update(accuracy(prediction, teacher, data), peak_mib=peak_mib(self._device))
        return {"students": answers}

    def _load(
        self, attempt: dict[str, Any], request: dict[str, Any], images: torch.Tensor, *, trusted: bool
    ) -> Student:
        folder, scheme = Path(attempt["folder"]), Scheme.from_dict(attempt["scheme"])
        model, families = request["model"], request["families"]
        student = load_student(folder, self._device, families, trusted=trusted, model=model)
        if scheme.mixed is not None:
            check_planned(student, scheme, images[:1])
        elif student.scheme != scheme:
            raise Invalid(f"the saved student's scheme is {student.scheme.label}, its cell's is {scheme.label}")
        return student

    def _evaluate_snapshots(self, request: dict[str, Any]) -> dict[str, Any]:
        """Evaluate the snapshots of a student, and remove them."""
        data, attempt = self._data(request), Path(request["attempt"])
        folder = TrainingFolder(attempt)
        curve = []
        if files := folder.students():
            trusted = ModelSpec.from_dict(request["model"]).trusted
            student = load_student(attempt, self._device, request["families"], trusted=trusted)
            for step, file in files.items():
                student.load_state_dict(load_file(file, str(self._device)))
                curve.append({"step": step, "top1": percent(predict(student, data, self._device).correct)})
        folder.drop_students()
        return {"curve": curve}

    def _make_real_source(self, request: dict[str, Any]) -> dict[str, Any]:
        """Choose the images of the real-data control from the target's training split, and save which they are."""
        begin, cpu_begin = time.monotonic(), time.process_time()
        model, dataset = ModelSpec.from_dict(request["model"]), DatasetSpec.from_dict(request["dataset"])
        evaluation = self._data(request | {"limit": None})
        indices, dropped = choose_training(dataset, model.card, request["count"], request["seed"], evaluation)
        source = RealImages(dataset, model, indices)
        seconds = {"seconds": time.monotonic() - begin, "cpu_seconds": time.process_time() - cpu_begin}
        cost: dict[str, Any] = seconds | {"counts": {}, "peak_mib": None}
        save_source(source, Path(request["source"]), request["environment"], cost)
        return {"images": len(source), "dropped": dropped}

    def _describe_environment(self, _request: dict[str, Any]) -> dict[str, Any]:
        from torch.utils.collect_env import get_pretty_env_info

        return {
            "torch": {
                "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
                "cudnn_deterministic": torch.backends.cudnn.deterministic,
                "cudnn_benchmark": torch.backends.cudnn.benchmark,
                "cudnn_tensor_float32": torch.backends.cudnn.allow_tf32,
                "float32_matmul_precision": torch.get_float32_matmul_precision(),
                "cpu_capability": torch.backends.cpu.get_cpu_capability(),
                "threads": torch.get_num_threads(),
                "collect_env": get_pretty_env_info(),  # type: ignore[no-untyped-call]
            }
        }

    def _data(self, request: dict[str, Any]) -> EvaluationSet:
        key = canonical([request["dataset"], request["model"]["card"], request["limit"]])
        if key not in self._sets:
            # One set at a time: decoded ImageNet is large, and cells come sorted by target and model.
            self._sets.clear()
            dataset, model = DatasetSpec.from_dict(request["dataset"]), ModelSpec.from_dict(request["model"])
            self._sets[key] = load_evaluation(dataset, model.card, request["limit"])
        return self._sets[key] if self.on_progress is None else _Reporting(self._sets[key], self.on_progress)

    def _teacher(self, request: dict[str, Any], model: ModelSpec, data: EvaluationSet) -> Predictions:
        key = canonical([request["dataset"], request["model"], request["limit"]])
        if key not in self._teachers:
            self._teachers[key] = predict(build_teacher(model, self._device, request["families"]), data, self._device)
        return self._teachers[key]


def _answer(error: BaseException) -> dict[str, Any]:
    """Return the answer to a request that failed; a model family of a plugin may raise anything."""
    if is_interrupt(error):
        raise error
    description = asdict(describe_failure(error))
    return {"status": description.pop("status"), "error": description}


def main() -> int:
    """Answer requests from standard input until it closes."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    try:
        evaluator = Evaluator(settings["threads"], settings["device"])
    except DfqError as error:
        stream.write(json.dumps({"error": {"message": str(error)}}) + "\n")
        return 2
    reported = time.monotonic()

    def report(done: int, images: int) -> None:
        nonlocal reported
        if time.monotonic() - reported >= PROGRESS_EVERY:
            stream.write(json.dumps({"progress": [done, images]}) + "\n")
            reported = time.monotonic()

    evaluator.on_progress = report
    stream.write(json.dumps({"ready": True, "torch": torch.__version__}) + "\n")
    for line in sys.stdin:
        stream.write(json.dumps(evaluator.answer(json.loads(line))) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
