from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.cli.calls import Call
from tests.report.records import record

from dfqbench.api.errors import UsageError
from dfqbench.cli.run import again_command, seconds_of
from dfqbench.run.schedule.scheduler import Summary
from dfqbench.run.store.run_folder import RunFolder
from dfqbench.run.store.status import FAULTY, MEASURED, RETRIES, SETTLED, STATUSES, retry_for


def test_times() -> None:
    seconds = {text: seconds_of("--time-limit", text) for text in ("90", "90s", "30m", "1.5h", "1d")}
    assert seconds == {"90": 90.0, "90s": 90.0, "30m": 1800.0, "1.5h": 5400.0, "1d": 86400.0}


@pytest.mark.parametrize("text", ["", "-5", "2 weeks", "1h30m", "nan"])
def test_malformed_times(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time; write for example 90s"):
        seconds_of("--time-limit", text)


def test_command_that_runs_failures_again() -> None:
    arguments = ["run", "--methods", "zeroq, noise", "--retry", "timeout", "--fresh", "--retry=all", "--fail-fast"]
    again = again_command(arguments, "failed")
    assert again == "dfqbench run --methods 'zeroq, noise' --retry failed"
    assert shlex.split(again)[3] == "zeroq, noise"


def test_every_fault_can_be_retried() -> None:
    assert set(STATUSES) >= SETTLED
    assert MEASURED.isdisjoint(FAULTY)
    assert RETRIES["all"] == FAULTY
    assert retry_for({"oom"}) == "failed"
    assert retry_for({"timeout"}) == "timeout"
    assert retry_for({"timeout", "failed"}) == "all"


@pytest.fixture
def finish(call: Call, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call `run` on a plan that is finished at once; return the lines on standard error."""

    def run(*arguments: str, cancelled: str | None = None) -> list[str]:
        def finished(plan: Any, _plugins: Any, options: Any, _console: Any, cancellation: Any) -> Any:
            folder = RunFolder(options.out / plan.grid.name)
            folder.path.mkdir(parents=True, exist_ok=True)
            if cancelled:
                cancellation.request(cancelled)
            return Summary([record("a1", top1=90.0)]), folder

        monkeypatch.setattr("dfqbench.run.schedule.run.run_plan", finished)
        output = call("run", *arguments)
        assert output.status == (130 if cancelled else 0), output
        return output.err.splitlines()

    return run


def test_last_lines_name_table_page_and_next_step(finish: Any) -> None:
    table, page, following = finish("--grid", "w4a4", "--on", "digits", "--methods", "noise")
    assert table == "table: results/runs/w4a4/table.txt, also as .md and .csv"
    assert page == "page: dfqbench report w4a4 --open"
    assert following.startswith("next: another width, --bits w3a3@gdfq; real data, dfqbench fetch cifar10 ")
    assert following.endswith("pytorchcv:resnet20_cifar10, then --on cifar10 --models pytorchcv:resnet20_cifar10")


def test_grid_that_is_the_default_can_be_named(finish: Any) -> None:
    assert finish("--grid", "w4a4")[0] == "table: results/runs/w4a4/table.txt, also as .md and .csv"


def test_page_outside_the_usual_folder_is_named_by_its_path(finish: Any, tmp_path: Path) -> None:
    _, page, _ = finish("--grid", "smoke", "--on", "digits", "--methods", "noise", "--out", str(tmp_path / "my runs"))
    assert shlex.split(page)[1:] == ["dfqbench", "report", f"{tmp_path}/my runs/smoke", "--open"]


@pytest.mark.parametrize(
    ("arguments", "step"),
    [
        (("--grid", "smoke"), "schedules long enough for numbers, dfqbench run --grid first"),
        (("--grid", "w4a4", "--bits", "w2a2@deploy"), "another width, --bits w4a4@deploy; real data"),
        (("--grid", "w4a4", "--bits", "w32a32"), "another width, --bits w4a4@gdfq; real data"),
        (("--grid", "bits"), "real data"),
    ],
)
def test_next_step_follows_from_what_was_run(finish: Any, arguments: tuple[str, ...], step: str) -> None:
    assert finish(*arguments, "--on", "digits", "--methods", "noise")[2].startswith(f"next: {step}")


def test_real_data_that_is_there_is_the_next_step(finish: Any, real_data: Path) -> None:
    arguments = ("--grid", "bits", "--methods", "noise", "--data", str(real_data))
    assert finish(*arguments, "--on", "digits")[2].startswith("next: real data, --on cifar10")
    assert finish(*arguments, "--on", "cifar10")[2] == "next: the spread, --seeds 0-2"
    images = "next: measure the images, dfqbench diagnose bits"
    assert finish(*arguments, "--on", "cifar10", "--seeds", "0,1")[2] == images


def test_what_other_targets_lack_comes_last_and_once(finish: Any) -> None:
    lines = finish("--grid", "w4a4", "--methods", "noise")
    assert [line.split()[0] for line in lines] == ["table:", "page:", "next:", "imagenet", "cifar10"]


def test_stopped_run_suggests_nothing_else(finish: Any) -> None:
    lines = finish("--grid", "w4a4", "--methods", "noise", cancelled="interrupt")
    assert [line.split()[0] for line in lines] == ["table:", "page:", "stopped", "dfqbench:"]
