from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.calls import Call, write_record

from dfqbench.cli.main import main

Complete = Callable[[str], list[str]]


@pytest.fixture
def complete(call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Complete:
    """Complete the last word of a command line as bash does."""

    def run(line: str) -> list[str]:
        words = line.split(" ")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["dfqbench"])
            patch.setenv("COMP_WORDS", line)
            patch.setenv("COMP_CWORD", str(len(words) - 1))
            patch.setenv("_DFQBENCH_COMPLETE", "complete_bash")
            capsys.readouterr()
            assert main() == 0
            output = capsys.readouterr()
        assert output.err == ""
        return output.out.split()

    return run


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("run --methods zer", ["zeroq"]),
        ("run --methods zeroq,no", ["zeroq,none", "zeroq,noise"]),
        ("plan --methods noise,zeroq+dis", ["noise,zeroq+distill"]),
        ("run --methods rea", ["real"]),
        ("run --grid w4", ["w4a4"]),
        ("run --budget s", ["short", "smoke"]),
        ("plan --on cifar100,dig", ["cifar100,digits"]),
        ("run --models digits:resnet8", ["digits:resnet8"]),
        ("run --on digits --models resnet8", ["resnet8"]),
        ("methods show distil", ["distill"]),
        ("methods check gd", ["gdfq"]),
        ("models show resnet8", ["resnet8"]),
        ("grids show smo", ["smoke"]),
        ("decode dig", ["digits"]),
        ("compare zer", ["zeroq"]),
        ("table --format lat", ["latex"]),
        ("tab", ["table"]),
    ],
)
def test_names(complete: Complete, line: str, names: list[str]) -> None:
    assert complete(f"dfqbench {line}") == names


def test_runs_and_cells(complete: Complete, tmp_path: Path) -> None:
    write_record(tmp_path / "out", "night", "abc1")
    write_record(tmp_path / "out", "noon", "abd2")
    for verb in ("table", "report", "plot", "pictures", "diagnose", "verify", "show"):
        assert complete(f"dfqbench {verb} --out {tmp_path}/out ni") == ["night"]
    assert complete(f"dfqbench compare --out {tmp_path}/out a b --run ni") == ["night"]
    assert complete(f"dfqbench show --out {tmp_path}/out ab") == ["abc1", "abd2"]
    assert complete(f"dfqbench show --out {tmp_path}/out ") == ["night", "noon"]
    assert complete(f"dfqbench compare --out {tmp_path}/out zeroq abd") == ["abd2"]


def test_errors_complete_nothing_and_print_nothing(
    complete: Complete, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert complete("dfqbench table ") == []
    assert complete(f"dfqbench run --data {tmp_path}/none --on d") == []

    def noisy() -> None:
        sys.stdout.write("a plugin's greeting")
        sys.stderr.write("a plugin's warning")
        raise RuntimeError("a plugin's error")

    monkeypatch.setattr("dfqbench.plugins.load_plugins", noisy)
    assert complete("dfqbench run --methods z") == []


def test_completion_can_be_installed(call: Call) -> None:
    assert "--install-completion" in call("--help").out


def test_completion_is_quick(complete: Complete) -> None:
    complete("dfqbench run --on d")
    begin = time.process_time()
    complete("dfqbench run --on d")
    assert time.process_time() - begin < 0.5
    assert os.environ.get("_DFQBENCH_COMPLETE") is None
