from __future__ import annotations

import webbrowser
from pathlib import Path

import pytest
from tests.cli.calls import Call, refused, write_record


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    write_record(folder, "one", "a1")
    write_record(folder, "two", "b2", label="noise")
    return folder


@pytest.mark.parametrize("path", ["one", "one/"])
def test_run_is_named_or_given_as_a_path(call: Call, out: Path, path: str) -> None:
    by_name = call("table", "one", "--out", out)
    assert (by_name.status, "zeroq" in by_name.out, "noise" in by_name.out) == (0, True, False)
    assert call("table", f"{out}/{path}") == by_name


def test_relative_paths_and_folders_of_runs(call: Call, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = call("table", "--out", out)
    assert {"zeroq", "noise"} <= set(everything.out.split())
    assert call("table", out) == everything
    monkeypatch.chdir(out / "one")
    assert call("table", ".") == call("table", "one", "--out", out)
    assert call("table", "../two").out == call("table", "two", "--out", out).out


def test_name_comes_before_a_folder_of_the_same_name(call: Call, out: Path) -> None:
    write_record(Path(), "one", "c3", label="real")
    assert "zeroq" in call("table", "one", "--out", out).out
    assert "real" in call("table", "./one", "--out", out).out


def test_files_about_a_path_are_written_there(call: Call, out: Path) -> None:
    for verb, file in (("report", "report.html"), ("plot", "plots"), ("pictures", "pictures")):
        assert call(verb, out / "two").status == 0
        assert (out / "two" / file).exists()
    assert call("report", out).status == 0
    assert (out / "report.html").is_file()


def test_compare_and_show_take_paths(call: Call, out: Path) -> None:
    named = call("compare", "zeroq", "zeroq", "--run", "one", "--out", out)
    assert call("compare", "zeroq", "zeroq", "--run", out / "one") == named
    by_id = call("show", "a1", "--out", out)
    assert by_id.status == 0
    cell = out / "one" / "cells" / "a1"
    assert call("show", cell) == call("show", cell / "attempt-1") == by_id
    for run in (["one", "--out", out], [out / "one"]):
        listed = call("show", *run)
        assert (listed.status, "a1" in listed.out, "b2" in listed.out) == (0, True, False)
        (row,) = call("show", *run, "--json").json
        assert (row["cell_id"], row["label"], row["top1"]) == ("a1", "zeroq", 90.0)


@pytest.mark.parametrize(
    "arguments",
    [("table",), ("report",), ("plot",), ("pictures",), ("diagnose",), ("verify",), ("compare", "a", "b", "--run")],
)
def test_unknown_run_says_what_there_is(call: Call, out: Path, arguments: tuple[str, ...]) -> None:
    refused(call(*arguments, "tow", "--out", out), "unknown run 'tow'; did you mean two", "valid: one, two")
    refused(call(*arguments, "no/tow", "--out", out), "'no/tow' is no folder and no run; runs in", "one, two")
    refused(call(*arguments, "tow", "--out", out / "none"), "'tow' is no folder and no run", "holds no run either")
    refused(call(*arguments, out / "one" / "cells"), "cells holds no run")


@pytest.mark.parametrize("verb", ["diagnose", "verify"])
def test_one_run_is_wanted(call: Call, out: Path, verb: str) -> None:
    refused(call(verb, out), "holds several runs: one, two; name one of them")


@pytest.mark.parametrize("works", [True, False])
def test_report_opens_in_the_browser(call: Call, out: Path, monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    opened: list[str] = []

    def open_page(url: str) -> bool:
        opened.append(url)
        return works

    monkeypatch.setattr(webbrowser, "open", open_page)
    output = call("report", "one", "--out", out, "--open")
    assert (output.status, "no browser" in output.err) == (0, not works)
    assert opened == [(out / "one" / "report.html").as_uri()]
    assert call("report", "one", "--out", out).status == 0
    assert len(opened) == 1
