from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import dfqbench
from attempts import PLUGINS
from dfqbench.report.html.head import read_command
from dfqbench.run.store.training_folder import TrainingFolder
from pretend import assert_parts_sum_to_wall_time, run_smoke

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


def run(out: Path, *arguments: str, data: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "DFQBENCH_DATA"}
    if data is not None:
        environment["DFQBENCH_DATA"] = str(data)
    command = [sys.executable, "-m", "dfqbench", "run", "--out", str(out), "--jobs", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)


def all_records(out: Path, name: str = "smoke") -> list[dict[str, Any]]:
    files = sorted(out.glob(f"{name}/cells/*/attempt-*/record.json"), key=lambda file: file.stat().st_mtime)
    return [json.loads(file.read_text()) for file in files]


def records(out: Path, name: str = "smoke") -> dict[str, dict[str, Any]]:
    """The newest record by label."""
    return {record["label"]: record for record in all_records(out, name)}


SMOKE = ("--grid", "smoke", "--methods", "zeroq,noise,real", "--bits", "w4a4,w2a2")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two methods and the real control by two processes at once, and again by a third."""
    out = tmp_path_factory.mktemp("smoke")
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: run(out, *SMOKE), range(2)))
    again = run(out, *SMOKE)
    assert [done.returncode for done in (*both, again)] == [0, 0, 0], both
    assert "6 cells on cpu" in both[0].stderr.splitlines()[0]
    assert "6 finished before; nothing to run" in again.stderr
    assert both[0].stdout == both[1].stdout == again.stdout
    return out


def test_folder_and_records_hold_what_the_page_shows(smoke: Path) -> None:
    command = read_command(smoke / "smoke")
    assert command.startswith("dfqbench run --out ")
    assert command.endswith("--grid smoke --methods zeroq,noise,real --bits w4a4,w2a2")
    found = records(smoke)
    assert found["zeroq"]["link"] == "https://arxiv.org/abs/2001.00281"
    assert found["zeroq"]["paper"].endswith("CVPR 2020")
    assert found["real"]["paper"] == "a control of this benchmark"


def test_two_runs_share_one_folder(smoke: Path) -> None:
    assert [len(list(cell.glob("attempt-*"))) for cell in (smoke / "smoke" / "cells").iterdir()] == [1] * 6


def test_run_writes_its_table_and_results_load_in_python(smoke: Path) -> None:
    assert {path.name for path in smoke.glob("smoke/table.*")} == {"table.txt", "table.md", "table.csv"}
    table = (smoke / "smoke" / "table.txt").read_text()
    assert all(name in table for name in ("zeroq", "noise (control)", "real (control)"))
    assert len(dfqbench.records(smoke)) == 6
    student = dfqbench.load_student(next(smoke.glob("smoke/cells/*/attempt-1")))
    assert student.scheme.protocol.name == "gdfq"


def test_seconds_add_up_and_host_overhead_is_small(smoke: Path) -> None:
    for record in all_records(smoke):
        seconds = record["seconds"]
        assert_parts_sum_to_wall_time(seconds)
        assert 0 <= seconds["unattributed"] < 0.2 * seconds["wall"] + 1.0


def test_source_is_paid_once_and_records_are_complete(smoke: Path) -> None:
    zeroq = [record for record in all_records(smoke) if record["label"] == "zeroq"]
    reused, record = sorted(zeroq, key=lambda record: record["seconds"]["paid_synthesis"])
    assert (reused["reused_from"], record["reused_from"]) == (record["source_id"], None)
    assert reused["source_id"] == record["source_id"]
    assert reused["seconds"]["paid_synthesis"] < 0.1 * record["seconds"]["paid_synthesis"]
    assert reused["seconds"]["synthesis"] == pytest.approx(record["seconds"]["synthesis"], rel=0.1)
    assert (record["status"], record["fidelity"], record["dataset"]["n"]) == ("ok", "released code", 540)
    assert record["drop"] == pytest.approx(record["fp_top1"] - record["top1"])
    assert record["coverage"]["macs_quantized"] < record["coverage"]["macs_total"]
    assert (record["levels_ok"], record["real_data_opened"]) == (True, [])
    assert record["counts"]["optimizer_steps"] == record["counts"]["source_steps"] > 0
    assert record["counts"]["images"] == 64
    assert record["peak_mib"]["synthesis"] > 0
    environment = smoke / "smoke" / "environments" / f"{record['environment']}.json"
    assert json.loads(environment.read_text())["packages"]["torch"]


@pytest.fixture(scope="module")
def plain_and_oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same cells in two runs: in this process, and in workers with snapshots for the oracle."""
    out = tmp_path_factory.mktemp("twice")
    methods = "zeroq,gdfq,noise+distill"
    run_smoke(out / "plain", methods, bits="w2a2", limit=None, executor="inline")
    done = run(out / "oracle", "--grid", "smoke", "--methods", methods, "--bits", "w2a2", "--oracle", "3")
    assert done.returncode == 0, done.stderr
    return out


def test_same_seed_gives_the_same_bits_in_another_run_with_an_oracle(plain_and_oracle: Path) -> None:
    plain_run, oracle_run = (plain_and_oracle / name / "smoke" for name in ("plain", "oracle"))
    files = sorted(file.relative_to(plain_run) for file in plain_run.glob("cells/*/attempt-1/*.safetensors"))
    assert [file.name for file in files] == ["images.safetensors", "student.safetensors"] * 3
    for file in files:
        assert (plain_run / file).read_bytes() == (oracle_run / file).read_bytes()
    plain, oracle = (records(plain_and_oracle / name) for name in ("plain", "oracle"))
    for label, record in plain.items():
        assert record["correct"] == oracle[label]["correct"]
        assert (record["curve"], record["oracle"]) == (None, None)


def test_curve_of_an_oracle_ends_in_the_headline(plain_and_oracle: Path) -> None:
    record = records(plain_and_oracle / "oracle")["gdfq"]
    steps = [point["step"] for point in record["curve"]]
    assert 1 < len(steps) <= 3
    assert steps == sorted(steps)
    # The last snapshot is the student itself, evaluated again from its own file.
    assert record["curve"][-1]["top1"] == record["top1"]
    assert record["oracle"]["top1"] == max(point["top1"] for point in record["curve"])
    assert record["selection"] == "last"
    assert_parts_sum_to_wall_time(record["seconds"])
    assert record["seconds"]["unattributed"] >= 0
    folder = TrainingFolder(plain_and_oracle / "oracle" / "smoke" / "cells" / record["cell_id"] / "attempt-1")
    assert folder.students() == {}
    assert len(folder.images()) > 2
    assert list(folder.images())[-1] == steps[-1]
    assert record["source_images"] == record["used_images"] == record["counts"]["images"]


def test_failures_are_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    faulty = PLUGINS / "faulty"
    methods = "raises,exits,opens-data,raises_on_import,noise"
    done = run(
        tmp_path,
        *("--grid", "smoke", "--methods", methods),
        *("--plugin", str(faulty / "misbehaves.py")),
        *("--plugin", str(PLUGINS / "broken" / "raises_on_import.py")),
    )
    assert done.returncode == 1, done.stderr
    found = records(tmp_path)
    status = {label: record["status"] for label, record in found.items()}
    failed = dict.fromkeys(("raises", "exits", "raises_on_import"), "failed")
    assert status == failed | {"opens-data": "invalid", "noise": "ok"}
    assert (found["raises"]["error"]["phase"], found["raises"]["error"]["step"]) == ("synthesis", 7)
    assert "the plugin's own mistake" in found["raises"]["error"]["traceback"]
    assert "ended with status 3" in found["exits"]["error"]["message"]
    assert "plugin code opened real data" in found["opens-data"]["error"]["message"]
    assert "--retry" in done.stderr
    log = next((tmp_path / "smoke" / "cells" / found["exits"]["cell_id"]).glob("attempt-1/log.txt"))
    assert "last words of the plugin" in log.read_text()


def test_signals_end_a_run_in_good_order(tmp_path: Path) -> None:
    arguments = ("--grid", "smoke", "--methods", "slow,noise", "--plugin", str(PLUGINS / "faulty" / "misbehaves.py"))
    command = [sys.executable, "-m", "dfqbench", "run", "--out", str(tmp_path), "--jobs", "1", *arguments]
    for attempt, (number, status) in enumerate(((signal.SIGTERM, 3), (signal.SIGINT, 130)), start=1):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while not list(tmp_path.glob(f"smoke/cells/*/attempt-{attempt}/work")) and process.poll() is None:
                time.sleep(0.02)
            time.sleep(0.5)
            process.send_signal(number)
            _, errors = process.communicate(timeout=300)
        assert process.returncode == status, errors
        assert f"stopped by {'SIGTERM' if status == 3 else 'Ctrl-C'}; 2 cells are left" in errors
        assert "Traceback" not in errors
        assert "goes on from its last step" in records(tmp_path)["slow"]["error"]["message"]
        assert list(tmp_path.glob("smoke/cells/*/checkpoints/checkpoint-*"))
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    slow, noise = records(tmp_path)["slow"], records(tmp_path)["noise"]
    assert (slow["attempt"], slow["resumed"], slow["environment"]) == (3, 2, noise["environment"])
    assert slow["seconds"]["synthesis"] >= 6.0
    assert_parts_sum_to_wall_time(slow["seconds"])
    assert not list(tmp_path.glob("smoke/cells/*/checkpoints"))


@pytest.mark.data
def test_zeroq_on_cifar10_at_eight_bits(real_data: Path, tmp_path: Path) -> None:
    arguments = ("--grid", "w8a8", "--on", "cifar10", "--models", "resnet20", "--methods", "zeroq,real")
    done = run(tmp_path, *arguments, "--set", "zeroq.iterations=20", "--device", "cpu", data=real_data)
    assert done.returncode == 0, done.stderr
    found = records(tmp_path, "w8a8")
    assert found["zeroq"]["fp_top1"] == pytest.approx(91.73, abs=0.05)
    assert abs(found["zeroq"]["drop"]) < 0.3
    assert abs(found["real"]["drop"]) < 0.3
