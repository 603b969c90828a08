"""Verification of a run: its kept students are evaluated again and compared with the records. Nothing is written."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dfqbench.api.errors import DfqError, InputError, Invalid, Unavailable
from dfqbench.models.identity import model_identity, portable_ref
from dfqbench.models.reference import CODE_SCHEME, parse_reference
from dfqbench.models.spec import ModelSpec
from dfqbench.quant.scheme import EARLIER, PROTOCOLS, Scheme
from dfqbench.run.evaluate.accuracy import unpacked
from dfqbench.run.execute.job import MOST_STUDENTS, EvaluatorDiedError
from dfqbench.run.execute.processes import EvaluatorProcess
from dfqbench.run.plan.identity import canonical
from dfqbench.run.store.consistency import EXACT
from dfqbench.run.store.environment import describe_environment, environment_id
from dfqbench.run.store.files import STUDENT_FILES, read_regular, write_json
from dfqbench.run.store.record import Record
from dfqbench.run.store.record_parts import Preprocessing
from dfqbench.run.store.run_folder import MOST_BYTES, RunFolder, is_untrusted, unreadable
from dfqbench.targets.catalogue import Catalogue
from dfqbench.targets.spec import DatasetSpec, MissingModel, fingerprint

Verdict = Literal["agrees", "disagrees", "invalid record", "unavailable here", "not verifiable"]
SAME_ANSWERS = 99.8
"""Percent of the answers that must be equal in another environment than the record's; in the same one all must be."""
_HINT = "name the run's data folder with --data"
_STATE_FILE, _DESCRIPTION_FILE = STUDENT_FILES


@dataclass(frozen=True, slots=True)
class Verified:
    """The verification of one cell."""

    cell_id: str
    label: str  # method and, in a cross, quantizer
    model: str
    scheme: str
    seed: int | None
    verdict: Verdict
    reason: str = ""  # of every verdict but `agrees`
    recorded_top1: float | None = None  # in percent
    measured_top1: float | None = None  # in percent; None: not measured
    equal_answers: float | None = None  # percent of the images; None: not measured, or none in the record
    same_environment: bool = False


@dataclass(frozen=True, slots=True)
class _Student:
    """A kept student, ready for the evaluator."""

    record: Record
    scheme: Scheme  # the cell's
    folder: Path  # of its copy
    request: dict[str, Any]  # part of all requests to the evaluator about its network and evaluation set


def verify_run(
    folder: RunFolder,
    catalogue: Catalogue,
    families: Mapping[str, str],
    scratch: Path,
    device: str = "cpu",
    *,
    sample: int | None = None,
    seed: int = 0,
    trust: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Verified]:
    """Measure the kept students of a run's newest attempts in a new process, and compare them with the records.

    Args:
        folder: of the run; nothing is written there.
        catalogue: targets of this machine.
        families: model families that plugins offer.
        scratch: an empty folder.
        device: where networks run.
        sample: most students to measure, chosen at random; None: all.
        seed: of that choice.
        trust: whether code that a record names outside model libraries (`py:` references) may be run.
        say: called with a line about what is measured.

    Raises:
        UsageError: the device is not there.
    """
    kept, results = _kept(folder)
    if sample is not None and sample < len(kept):
        kept = random.Random(seed).sample(kept, sample)  # noqa: S311 - no secret
    here = _Here(catalogue, families, scratch, trust=trust)
    groups: dict[str, list[_Student]] = {}
    for record, attempt in kept:
        say(f"{record.label} {record.cell_id}")
        try:
            student = here.student(record, attempt)
        except Invalid as error:
            results.append(_verified(record, "disagrees", str(error)))
        except DfqError as error:
            results.append(_verified(record, "unavailable here", str(error)))
        else:
            groups.setdefault(canonical([record.threads, student.request]), []).append(student)
    environment = environment_id(describe_environment(device))
    evaluators: dict[int, EvaluatorProcess] = {}
    with ExitStack() as stack:
        for group in groups.values():
            threads = group[0].record.threads or 1
            if threads not in evaluators:
                evaluators[threads] = EvaluatorProcess(scratch / "evaluator.log", threads, device)
                stack.callback(evaluators[threads].close)
            for start in range(0, len(group), MOST_STUDENTS):
                students = group[start : start + MOST_STUDENTS]
                say(f"{len(students)} students of {students[0].record.model.name}")
                results += _measure(evaluators[threads], students, environment)
    return sorted(results, key=lambda result: result.cell_id)


def _kept(folder: RunFolder) -> tuple[list[tuple[Record, Path]], list[Verified]]:
    """Return the records with a kept student and the folders of their attempts, and the verdicts on the others."""
    newest: dict[str, tuple[Record, Path]] = {}
    verdicts: list[Verified] = []
    for record, file in folder.records():
        attempt = file.parent
        cell = attempt.parent.name
        if record is None:
            verdicts.append(Verified(cell, "", "", "", None, "not verifiable", unreadable(file)))
        elif record.cell_id != cell or (record.attempt and attempt.name != f"attempt-{record.attempt}"):
            claim = f"the record is of attempt {record.attempt} at cell {record.cell_id}, and lies in {attempt}"
            verdicts.append(_verified(record, "invalid record", claim))
        else:
            newest[cell] = record, attempt
    kept = []
    for record, attempt in newest.values():
        missing = [name for name in STUDENT_FILES if not (attempt / name).is_file()]
        if is_untrusted(record):
            verdicts.append(_verified(record, "invalid record", record.error.message if record.error else ""))
        elif record.top1 is None:
            continue
        elif "plugin_student" in record.flags:
            verdicts.append(_verified(record, "not verifiable", "its student is a module of the plugin's own"))
        elif missing or not record.scheme.details:
            lacks = f"{missing[0]} is not kept" if missing else "the record lacks the details of its scheme"
            verdicts.append(_verified(record, "not verifiable", lacks))
        else:
            kept.append((record, attempt))
    return kept, verdicts


class _Here:
    """The targets and networks of this machine, and the folder for descriptions of students that name them."""

    def __init__(self, catalogue: Catalogue, families: Mapping[str, str], scratch: Path, *, trust: bool) -> None:
        self._catalogue = catalogue
        self._families = dict(families)
        self._scratch = scratch
        self._trust = trust
        # Hashing data and weights reads whole files.
        self._datasets: dict[str, str] = {}
        self._networks: dict[tuple[str, str], dict[str, Any]] = {}

    def student(self, record: Record, attempt: Path) -> _Student:
        """Return a kept student, described with the network of this machine instead of the one that its file names.

        Raises:
            Invalid: record and student contradict each other.
            DfqError: data or network are not those of the record here.
        """
        scheme = scheme_of(record)
        dataset = self._dataset(record)
        model = self._model(record, dataset)
        try:
            description = json.loads(read_regular(attempt / _DESCRIPTION_FILE, MOST_BYTES))
            described = self._facts(ModelSpec.from_dict(description["model"]))
            saved = description["scheme"]
        except (DfqError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise Invalid(f"{_DESCRIPTION_FILE} cannot be read: {error}") from error
        if described != self._facts(model):
            raise Invalid(f"its student is of another network than {record.model.name}")
        folder = self._scratch / f"{record.cell_id}-{record.attempt}"
        folder.mkdir()
        (folder / _STATE_FILE).symlink_to((attempt / _STATE_FILE).absolute())
        write_json(folder / _DESCRIPTION_FILE, {"model": model.as_dict(), "scheme": saved})
        request = {
            "model": model.as_dict(),
            "dataset": dataset.as_dict(),
            "limit": record.dataset.n if record.dataset.subset else None,
            "families": self._families,
            "precision": record.precision,
        }
        return _Student(record, scheme, folder, request)

    def _dataset(self, record: Record) -> DatasetSpec:
        if record.target not in self._catalogue.names():
            raise Unavailable(f"there is no target '{record.target}' here", _HINT)
        target = self._catalogue.target(record.target)
        if target.dataset is None:
            raise Unavailable(target.missing)
        if target.name not in self._datasets:
            self._datasets[target.name] = fingerprint(target.dataset)
        if self._datasets[target.name] != record.dataset.sha256:
            raise Unavailable(f"the evaluation set '{target.name}' here is not that of the record", _HINT)
        return target.dataset

    def _model(self, record: Record, dataset: DatasetSpec) -> ModelSpec:
        model = self._catalogue.models(dataset.name, [record.model.name])[0]
        if isinstance(model, MissingModel):
            raise Unavailable(model.reason)
        if model.trusted and parse_reference(model.ref, self._families).scheme == CODE_SCHEME and not self._trust:
            raise Unavailable(f"the record names code, {model.ref}", "if it is your own, add --trust to run it")
        key = (dataset.name, model.name)
        if key not in self._networks:
            self._networks[key] = model_identity(model, self._families)
        network = self._networks[key]
        recorded = record.model.ref and portable_ref(record.model.ref, self._families)
        if (network["ref"], network["weights_sha256"]) != (recorded, record.model.weights_sha256):
            raise Unavailable(f"the network '{model.name}' here has other weights than that of the record", _HINT)
        preprocessing = {"resize": dataset.resize, "crop": dataset.crop, "card": model.as_dict()["card"]}
        parts = (Preprocessing.model_validate(preprocessing), record.preprocessing)
        here, recorded_there = (part.model_dump(exclude={"card": {"stats"}}) for part in parts)
        if here != recorded_there:
            raise Unavailable("images are preprocessed in another way here", _HINT)
        return dataclasses.replace(model, trusted=self._trust)

    def _facts(self, model: ModelSpec) -> dict[str, Any]:
        """Return what decides the architecture of a network and its input; statistics serve synthesis only."""
        data = dataclasses.replace(model, card=dataclasses.replace(model.card, stats=None)).as_dict()
        kept = {name: data[name] for name in ("args", "kwargs", "random_seed", "card")}
        return {"ref": portable_ref(model.ref, self._families), **kept}


def scheme_of(record: Record) -> Scheme:
    """Return the scheme of a record.

    Raises:
        Invalid: its parts contradict each other.
    """
    facts = record.scheme
    try:
        bits = {"w_bits": facts.w_bits, "a_bits": facts.a_bits, "mixed": facts.mixed}
        scheme = Scheme.from_dict(bits | {"protocol": facts.details})
    except DfqError as error:
        raise Invalid(f"the record's scheme cannot be read: {error.message}") from error
    protocol = scheme.protocol
    if (facts.label, facts.protocol) != (scheme.label, protocol.name):
        raise Invalid(f"the record's scheme is called {facts.label}, and is {scheme.label}")
    meanings = [meaning for meaning in (*PROTOCOLS.values(), *EARLIER) if meaning.name == protocol.name]
    if meanings and protocol not in meanings:
        raise Invalid(f"the record's scheme is not what @{protocol.name} means")
    return scheme


def _measure(evaluator: EvaluatorProcess, students: Sequence[_Student], environment: str) -> list[Verified]:
    """Measure students of one network and one evaluation set in one pass."""
    request = students[0].request
    attempts = [{"folder": str(student.folder), "scheme": student.scheme.as_dict()} for student in students]
    try:
        baseline = evaluator.ask(request | {"op": "baseline"})
        answer = {} if "error" in baseline else evaluator.ask(request | {"op": "evaluate", "attempts": attempts})
    except EvaluatorDiedError as error:
        if len(students) > 1:
            return [result for student in students for result in _measure(evaluator, [student], environment)]
        return [_verified(students[0].record, "unavailable here", error.message)]
    if failed := next((part for part in (baseline, answer) if "error" in part), None):
        return [_verified(student.record, "unavailable here", failed["error"]["message"]) for student in students]
    return [
        _judged(student.record, baseline | measured, environment)
        for student, measured in zip(students, answer["students"], strict=True)
    ]


def _judged(record: Record, measured: Mapping[str, Any], environment: str) -> Verified:
    if error := measured.get("error"):
        # The full-precision network runs here, and the student does not fit it or its cell.
        unfit = error["type"] in {InputError.__name__, Invalid.__name__}
        return _verified(record, "disagrees" if unfit else "unavailable here", error["message"])
    same = record.environment == environment
    found = differences(record, measured, exact=same)
    return dataclasses.replace(
        _verified(record, "disagrees" if found else "agrees", "; ".join(found)),
        measured_top1=measured["top1"],
        equal_answers=equal_answers(record, measured),
        same_environment=same,
    )


def equal_answers(record: Record, measured: Mapping[str, Any]) -> float | None:
    """Return the percentage of images whose answer is right in both or wrong in both; None: the record has none."""
    images = record.dataset.n
    if not record.correct or images is None or images != measured["n"]:
        return None
    return 100.0 * float((unpacked(record.correct, images) == unpacked(measured["correct"], images)).mean())


def differences(record: Record, measured: Mapping[str, Any], *, exact: bool) -> list[str]:
    """Return what of a measurement differs from the record, a phrase each.

    Args:
        record: of the cell.
        measured: the evaluator's answers to `baseline` and about the student, in one.
        exact: whether all answers must be equal; otherwise `SAME_ANSWERS` percent of them.
    """
    least = 100.0 if exact else SAME_ANSWERS
    equal = equal_answers(record, measured)
    found = [] if equal is None or equal >= least else [f"{equal:.2f} % of the answers are equal"]
    # Agreement compares two networks, each of which may answer differently.
    slack = {"top1": 1, "top5": 1, "fp_top1": 1, "agreement": 2}
    for name, networks in slack.items():
        recorded, now = getattr(record, name), measured[name]
        if recorded is not None and abs(recorded - now) > networks * (100.0 - least) + EXACT:
            found.append(f"{name} {recorded:.2f} in the record, {now:.2f} measured")
    pairs = {
        "images": (record.dataset.n, measured["n"]),
        "subset": (record.dataset.subset or "", measured["subset"] or ""),
        "parameters": (record.model.params, measured["parameters"]),
        "levels_ok": (record.levels_ok, measured["levels_ok"]),
        "layers": (record.scheme.layers, measured.get("layers", {})),
    }
    if record.coverage is not None:
        pairs |= {name: (getattr(record.coverage, name), value) for name, value in measured["coverage"].items()}
    for name, (before, after) in pairs.items():
        if before is not None and before != after:
            found.append(f"{name} {before} in the record, {after} measured")
    return found


def _verified(record: Record, verdict: Verdict, reason: str) -> Verified:
    label, model = record.label or record.method, record.model.name
    about = (record.cell_id, label, model, record.scheme.label, record.seed)
    return Verified(*about, verdict, " ".join(reason.split()), recorded_top1=record.top1)
