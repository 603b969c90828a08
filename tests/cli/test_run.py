from __future__ import annotations

import shlex

import pytest

from dfqbench.api.errors import UsageError
from dfqbench.cli.run import again_command, seconds_of
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
