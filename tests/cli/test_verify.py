from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.calls import Call, refused
from tests.report.records import record

from dfqbench.api.errors import Invalid
from dfqbench.quant.scheme import EARLIER, PROTOCOLS, Scheme
from dfqbench.run.evaluate import verify
from dfqbench.run.evaluate.accuracy import packed, standard_error, unpacked
from dfqbench.run.evaluate.evaluator import Evaluator
from dfqbench.run.execute.job import EvaluatorDiedError
from dfqbench.run.store.files import RECORD
from dfqbench.run.store.record import Record
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.targets.catalogue import DIGITS_WEIGHTS

slow = pytest.mark.slow
BITS = ("w4a4@gdfq", "w3a3@gdfq", "w2a2@gdfq")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three cells."""
    out = tmp_path_factory.mktemp("verify")
    cells = ("--grid", "smoke", "--methods", "noise", "--bits", ",".join(BITS), "--executor", "inline")
    arguments = (*cells, "--name", "one", "--out", str(out))
    subprocess.run([sys.executable, "-m", "dfqbench", "run", *arguments], check=True, capture_output=True, timeout=300)
    return out / "one"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(finished, tmp_path / "out" / "one"))


def test_earlier_meanings_of_a_protocol_are_known_and_others_refused() -> None:
    parts = {"label": "w4a4@deploy", "w_bits": 4, "a_bits": 4, "protocol": "deploy"}
    for protocol in (PROTOCOLS["deploy"], *EARLIER):
        details = Scheme(4, 4, protocol).as_dict()["protocol"]
        assert verify.scheme_of(record("a", scheme=parts | {"details": details})).protocol == protocol
    # As written before protocols had versions.
    written = {key: details[key] for key in details if key not in {"version", "integer_bias", "quantize_identity"}}
    assert verify.scheme_of(record("a", scheme=parts | {"details": written})).protocol == EARLIER[0]
    for other in ({"version": 2}, {"integer_bias": True}, {"first_bits": None}):
        with pytest.raises(Invalid, match="not what @deploy means"):
            verify.scheme_of(record("a", scheme=parts | {"details": written | other}))


class InThisProcess:
    """The evaluator without a process of its own, which takes seconds to start."""

    killed_by: str | None = None  # the cell whose student ends it

    def __init__(self, _log: Path, threads: int, device: str) -> None:
        self.evaluator = Evaluator(threads, device)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.killed_by and any(self.killed_by in attempt["folder"] for attempt in request.get("attempts", ())):
            raise EvaluatorDiedError("the evaluator was killed by SIGKILL")
        return self.evaluator.answer(json.loads(json.dumps(request)))

    def close(self) -> None:
        pass


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> type[InThisProcess]:
    monkeypatch.setattr(verify, "EvaluatorProcess", InThisProcess)
    return InThisProcess


def attempts(run: Path) -> dict[str, Path]:
    """Folders of attempts by scheme."""
    files = run.glob(f"cells/*/attempt-1/{RECORD}")
    return {json.loads(file.read_text())["scheme"]["label"]: file.parent for file in files}


def rewrite(attempt: Path, **changes: Any) -> None:
    """Change a record, with the digest that it should have."""
    data = json.loads((attempt / RECORD).read_text())
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    RunFolder(attempt.parents[2]).write_record(attempt, Record.from_data(data))


def verdicts(output: Any) -> dict[str, Mapping[str, Any]]:
    return {entry["scheme"]: entry for entry in json.loads(output.out)}


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@slow
def test_students_of_an_honest_run_agree_and_nothing_is_written(call: Call, finished: Path) -> None:
    before = contents(finished)
    output = call("verify", finished)
    assert output.status == 0, output
    lines = output.out.splitlines()
    for entry in json.loads(call("table", "one", "--out", finished.parent, "--format", "json").out):
        (line,) = [line for line in lines if line.startswith(entry["cell_id"])]
        top1 = f"{entry['top1']:.2f}"
        assert line.split() == [
            *(entry["cell_id"], "noise", "digits:resnet8", entry["scheme"]["label"], "0"),
            *(top1, top1, "100.00", "agrees"),
        ]
    assert lines[-1] == "cells: 3; agrees: 3"
    assert contents(finished) == before


@slow
def test_falsified_students_and_records_disagree(call: Call, run: Path, inline: type[InThisProcess]) -> None:
    folders = attempts(run)
    file = folders["w4a4@gdfq"] / "student.safetensors"
    weights = load_file(file)
    name = next(name for name, value in weights.items() if value.dim() == 4)
    save_file(weights | {name: torch.roll(weights[name], 1, 0)}, file)
    better = json.loads((folders["w2a2@gdfq"] / RECORD).read_text())
    right = unpacked(better["correct"], 540)
    right[np.flatnonzero(~right)[:2]] = True
    top1 = 100.0 * float(right.mean())
    accuracy = {"top1": top1, "drop": better["fp_top1"] - top1, "top1_se": standard_error(top1, 540)}
    rewrite(folders["w2a2@gdfq"], correct=packed(right), **accuracy)
    (folders["w3a3@gdfq"] / "student.safetensors").unlink()
    output = call("verify", "one", "--out", run.parent, "--json")
    assert output.status == 1, output
    found = verdicts(output)
    assert [found[label]["verdict"] for label in BITS] == ["disagrees", "not verifiable", "disagrees"]
    assert found["w4a4@gdfq"]["equal_answers"] < 100
    assert found["w3a3@gdfq"]["reason"] == "student.safetensors is not kept"
    assert found["w2a2@gdfq"]["equal_answers"] == pytest.approx(100 * 538 / 540)
    assert found["w2a2@gdfq"]["measured_top1"] == pytest.approx(top1 - 200 / 540)
    assert f"top1 {top1:.2f} in the record, {top1 - 200 / 540:.2f} measured" in found["w2a2@gdfq"]["reason"]


@slow
def test_students_of_another_cell_disagree(call: Call, run: Path, inline: type[InThisProcess]) -> None:
    folders = attempts(run)
    # Another scheme's student, a record that calls its scheme another, and a student of another network.
    for name in ("student.json", "student.safetensors"):
        shutil.copy(folders["w3a3@gdfq"] / name, folders["w4a4@gdfq"] / name)
    rewrite(folders["w2a2@gdfq"], scheme={"label": "w2a2@deploy", "protocol": "deploy"})
    description = json.loads((folders["w3a3@gdfq"] / "student.json").read_text())
    description["model"]["ref"] = "cifar:resnet20"
    (folders["w3a3@gdfq"] / "student.json").write_text(json.dumps(description))
    output = call("verify", "one", "--out", run.parent, "--json")
    assert output.status == 1, output
    reasons = {label: entry["reason"] for label, entry in verdicts(output).items() if entry["verdict"] == "disagrees"}
    assert "the saved student's scheme is w3a3@gdfq, its cell's is w4a4@gdfq" in reasons["w4a4@gdfq"]
    assert reasons["w2a2@deploy"] == "the record's scheme is called w2a2@deploy, and is w2a2@gdfq"
    assert reasons["w3a3@gdfq"] == "its student is of another network than digits:resnet8"


@slow
def test_invalid_and_misplaced_records_count_as_disagreement(
    call: Call, run: Path, inline: type[InThisProcess]
) -> None:
    folders = attempts(run)
    file = folders["w4a4@gdfq"] / RECORD
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    shutil.copytree(folders["w3a3@gdfq"], run / "cells" / "copied" / "attempt-1")
    output = call("verify", "one", "--out", run.parent)
    assert output.status == 1, output
    assert "invalid record: the record cannot be trusted: record.json is not what dfqbench wrote" in output.out
    assert "and lies in" in output.out
    assert output.out.splitlines()[-1] == "cells: 4; agrees: 2; invalid record: 2"


@slow
def test_other_data_and_networks_are_unavailable(call: Call, run: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.py"
    hostile.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef net(): ...\n")
    folders = attempts(run)
    rewrite(folders["w4a4@gdfq"], dataset={"sha256": "0" * 64})
    rewrite(folders["w3a3@gdfq"], model={"weights_sha256": "0" * 64})
    rewrite(folders["w2a2@gdfq"], model={"name": f"py:{hostile}:net", "ref": f"py:{hostile}:net"})
    output = call("verify", "one", "--out", run.parent)
    assert output.status == 2, output
    assert "the evaluation set 'digits' here is not that of the record; name the run's data folder" in output.out
    assert "the network 'digits:resnet8' here has other weights than that of the record" in output.out
    assert "if it is your own, add --trust to run it" in output.out
    assert "no student of run 'one' could be measured" in output.err
    assert not (tmp_path / "ran").exists()
    rewrite(folders["w4a4@gdfq"], target="nowhere")
    assert "there is no target 'nowhere' here; name the run's data" in call("verify", "one", "--out", run.parent).out


@slow
def test_statistics_of_the_domain_do_not_matter_to_answers(call: Call, run: Path, inline: type[InThisProcess]) -> None:
    attempt = attempts(run)["w4a4@gdfq"]
    preprocessing = json.loads((attempt / RECORD).read_text())["preprocessing"]
    rewrite(attempt, preprocessing=preprocessing | {"card": preprocessing["card"] | {"stats": None}})
    description = json.loads((attempt / "student.json").read_text())
    description["model"]["card"]["stats"] = None
    (attempt / "student.json").write_text(json.dumps(description))
    assert verdicts(call("verify", run, "--json"))["w4a4@gdfq"]["verdict"] == "agrees"
    rewrite(attempt, preprocessing=preprocessing | {"card": preprocessing["card"] | {"mean": [0.0]}})
    assert verdicts(call("verify", run, "--json"))["w4a4@gdfq"]["verdict"] != "agrees"


@slow
def test_record_of_another_machine_is_compared_with_the_network_of_this_one(
    call: Call, run: Path, tmp_path: Path, inline: type[InThisProcess]
) -> None:
    code = tmp_path / "net.py"
    code.write_text(
        "from dfqbench.models.digits import ARCHITECTURES\ndef net(): return ARCHITECTURES['resnet8'](10)\n"
    )
    attempt, elsewhere = attempts(run)["w4a4@gdfq"], "py:/not/here/net.py:net"
    name = f"py:{code}:net?weights={DIGITS_WEIGHTS}"
    rewrite(attempt, environment="another", model={"name": name, "ref": elsewhere})
    description = json.loads((attempt / "student.json").read_text())
    description["model"] |= {"name": name, "ref": elsewhere, "weights": "/not/here/weights.safetensors"}
    (attempt / "student.json").write_text(json.dumps(description))
    output = call("verify", "one", "--out", run.parent, "--trust")
    assert output.status == 0, output
    assert output.out.endswith("agrees: 3; of records from another environment, where answers may differ: 1\n")


@slow
def test_student_that_ends_the_evaluator_costs_one_cell(
    call: Call, run: Path, inline: type[InThisProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline, "killed_by", attempts(run)["w3a3@gdfq"].parent.name)
    found = verdicts(call("verify", "one", "--out", run.parent, "--json"))
    assert [found[label]["verdict"] for label in BITS] == ["agrees", "unavailable here", "agrees"]


@slow
def test_sample_is_the_same_for_the_same_seed(call: Call, run: Path, inline: type[InThisProcess]) -> None:
    outputs = [call("verify", "one", "--out", run.parent, "--sample", "1", "--seed", "3") for _ in range(2)]
    assert outputs[0] == outputs[1]
    assert outputs[0].out.splitlines()[-1] == "cells: 1; agrees: 1; at most 1 measured, chosen with seed 3"


def test_own_modules_and_missing_students_are_not_verifiable(call: Call, tmp_path: Path) -> None:
    for cell, flags in (("aaa", ["plugin_student"]), ("bbb", [])):
        attempt = tmp_path / "one" / "cells" / cell / "attempt-1"
        attempt.mkdir(parents=True)
        made = record(cell, flags=flags, top1_se=None)
        (attempt / RECORD).write_text(json.dumps(made.as_dict()))
    output = call("verify", "one", "--out", tmp_path)
    assert output.status == 2
    assert "aaa zeroq: not verifiable: its student is a module of the plugin's own" in output.out
    assert "bbb zeroq: not verifiable: student.safetensors is not kept" in output.out


def test_unknown_run(call: Call, tmp_path: Path) -> None:
    (tmp_path / "out" / "one" / "cells").mkdir(parents=True)
    refused(call("verify", "oen", "--out", tmp_path / "out"), "unknown run 'oen'; did you mean one")


def measured(right: int, of: int = 1000, **changes: Any) -> dict[str, Any]:
    top1 = 100.0 * right / of
    answer: dict[str, Any] = {"top1": top1, "top5": 95.0, "fp_top1": 90.0, "agreement": 85.0}
    answer |= {"n": of, "subset": None, "parameters": 5, "levels_ok": True, "correct": packed(np.arange(of) < right)}
    return answer | {"coverage": {"macs_quantized": 7, "macs_total": 8, "float_layers": ["fc"]}} | changes


def recorded(right: int) -> Record:
    data = measured(right)
    n, subset, parameters = (data.pop(key) for key in ("n", "subset", "parameters"))
    return record("aaa", dataset={"n": n, "subset": subset}, model={"name": "m", "params": parameters}, **data)


def test_same_environment_must_give_every_answer_again() -> None:
    assert verify.differences(recorded(800), measured(800), exact=True) == []
    assert verify.differences(recorded(800), measured(801), exact=True) == [
        "99.90 % of the answers are equal",
        "top1 80.00 in the record, 80.10 measured",
    ]


def test_another_environment_may_change_two_answers_of_a_thousand() -> None:
    assert verify.differences(recorded(800), measured(802), exact=False) == []
    assert verify.differences(recorded(800), measured(803), exact=False) != []
    # As many right answers, of other images.
    moved = packed(np.roll(np.arange(1000) < 800, 2))
    assert verify.differences(recorded(800), measured(800, correct=moved), exact=False) == [
        "99.60 % of the answers are equal"
    ]
    assert verify.differences(recorded(800), measured(800, fp_top1=90.2, agreement=85.4), exact=False) == []
    assert len(verify.differences(recorded(800), measured(800, fp_top1=90.3, agreement=85.5), exact=False)) == 2


@pytest.mark.parametrize("exact", [True, False])
def test_coverage_and_levels_must_be_equal_everywhere(exact: bool) -> None:
    other = {"macs_quantized": 6, "macs_total": 8, "float_layers": ["fc"]}
    found = verify.differences(recorded(800), measured(800, coverage=other, levels_ok=False, n=1000), exact=exact)
    assert found == ["levels_ok True in the record, False measured", "macs_quantized 7 in the record, 6 measured"]


def test_other_number_of_images_is_a_difference() -> None:
    assert "images 1000 in the record, 500 measured" in verify.differences(
        recorded(800), measured(400, 500), exact=False
    )
