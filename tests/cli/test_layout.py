from __future__ import annotations

import sys

import pytest
from tests.cli.calls import Call

from dfqbench.cli.layout import colored, fitted_table, stderr_console, wrapped

LISTS = [("methods", "list"), ("models", "list"), ("grids", "list"), ("doctor", "--images", "0")]
LISTS += [("methods", "show", name) for name in ("zeroq", "distill")]


@pytest.mark.parametrize("command", LISTS, ids=" ".join)
def test_listings_fit_80_columns_and_use_wide_terminals(
    call: Call, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    narrow = call(*command).out
    assert max(map(len, narrow.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "250")
    wide = call(*command).out
    assert len(wide.splitlines()) <= len(narrow.splitlines())
    assert sorted(wide.replace("-", "").split()) == sorted(narrow.replace("-", "").split()), "a word was broken"


def test_words_are_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    path = "/a/long-path/that/is/copied/by/people"
    table = fitted_table([("data folder", "ok", f"images, {path}")], ("what", "status", "detail"))
    assert path in table
    assert table.splitlines()[2].split() == ["data", colored("ok", "ok"), "images,"]
    assert path in wrapped(f"put them into {path}").splitlines()
    assert fitted_table([], ("a", "b")).splitlines()[0].split() == ["a", "b"]


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colors_are_for_terminals(
    call: Call, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], wanted: bool
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ("\x1b[" in call("doctor", "--images", "0").out) == wanted
    assert ("\x1b[" in call("table", "nosuch").err) == wanted


@pytest.mark.parametrize(
    ("variables", "terminal", "alive"),
    [({}, True, True), ({"TERM": "dumb"}, True, False), ({"FORCE_COLOR": "1"}, False, False)],
)
def test_bars_are_for_terminals(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], terminal: bool, alive: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert stderr_console().is_terminal == alive
