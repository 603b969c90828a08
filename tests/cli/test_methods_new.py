from __future__ import annotations

import json
from pathlib import Path

import pytest

from dfqbench.cli.main import main

PLUGINS = Path(__file__).parent.parent / "plugins"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["dfqbench", "methods", *arguments])
    return main()


def test_new_says_what_to_do_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "new", "mine") == 0
    out = capsys.readouterr().out
    assert "mine/src/dfqbench_mine/plugin.py" in out
    assert "cd mine" in out
    assert "pip install -e '.[test]'" in out
    assert "dfqbench run --grid smoke --methods mine,noise" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zeroq"], "there is a method 'zeroq' already"),
        (["real"], "there is a method 'real' already"),
        (["Mine"], "'Mine' cannot be the name of a method"),
        (["mine", "--kind", "generators"], "did you mean generator"),
        (["mine", "--into", "absent"], "there is no folder absent"),
    ],
)
def test_new_refuses(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "new", *arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_check_reports_what_to_change(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = PLUGINS / "broken" / "plain_params.py"
    assert call(monkeypatch, "check", "plain_params", "--plugin", str(file)) == 1
    out, err = capsys.readouterr()
    assert "failed   contract" in out
    assert "write it as @dataclass(frozen=True)" in out
    assert "'parameters' and what follows was not run" in err
    assert "1 of 15 checks failed" in err


def test_check_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = PLUGINS / "broken" / "plain_params.py"
    assert call(monkeypatch, "check", "plain_params", "--plugin", str(file), "--json") == 1
    findings = json.loads(capsys.readouterr().out)
    assert {finding["status"] for finding in findings} == {"failed", "ok", "not run"}


def test_check_of_an_unknown_or_broken_method(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "check", "zerq") == 2
    assert "did you mean zeroq" in capsys.readouterr().err
    file = PLUGINS / "broken" / "raises_on_import.py"
    assert call(monkeypatch, "check", "raises_on_import", "--plugin", str(file)) == 1
    assert "did not load: ModuleNotFoundError" in capsys.readouterr().err
