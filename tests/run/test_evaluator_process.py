from __future__ import annotations

from pathlib import Path

import pytest

from dfqbench.run.execute.job import EvaluationTimeoutError
from dfqbench.run.execute.processes import EvaluatorProcess


def test_time_limit_ends_the_process_and_the_next_request_starts_another(tmp_path: Path) -> None:
    evaluator = EvaluatorProcess(tmp_path / "log.txt", threads=1, device="cpu")
    try:
        # Loading torch alone takes longer.
        with pytest.raises(EvaluationTimeoutError, match=r"limit of 0.05 s was reached; give it more with --evalu"):
            evaluator.ask({"op": "baseline"}, limit=0.05)
        answer = evaluator.ask({"op": "nothing"}, limit=120.0)
        assert answer["error"]["type"] == "KeyError"
    finally:
        evaluator.close()
