from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.calls import BROKEN, PLUGINS, Call, refused, write_record


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    write_record(folder, "one", "aaa")
    write_record(folder, "two", "bbb", method="noise", top1=20.0)
    environments = folder / "one" / "environments"
    environments.mkdir()
    (environments / "e1.json").write_text(json.dumps({"device": "cpu", "device_name": "Toy", "cores": 2}))
    return folder


def test_all_runs_or_one(call: Call, out: Path) -> None:
    output = call("table", "--out", out)
    assert output.status == 0
    assert all(part in output.out for part in ("90.00", "20.00", "hardware: cpu: Toy, 2 cores"))
    [record] = call("table", "two", "--out", out, "--format", "json").json
    assert record["method"] == "noise"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\x00", b'{"status": "ok"}'])
def test_corrupt_record_is_a_warning(call: Call, tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out"
    arguments = ("run", "--grid", "smoke", "--methods", "raises_on_import", "--plugin", BROKEN, "--out", out)
    call(*arguments)
    (path,) = out.glob("smoke/cells/*/attempt-1/record.json")
    path.write_bytes(content)

    table = call("table", "--out", out)
    assert table.status == 0
    (line,) = table.err.splitlines()
    assert line.startswith(f"dfqbench: warning: {path} is not a readable record")
    assert "delete its folder to run it again" in line
    assert call("plan", "--grid", "smoke", "--out", out).status == 0

    again = call(*arguments)
    assert again.status == 1
    assert "Traceback" not in again.err
    assert path.read_bytes() == content
    assert json.loads((path.parents[1] / "attempt-2" / "record.json").read_text())["status"] == "failed"


CLAIMS = """source_paper,table_or_where,reported_in,method,dataset,model,w_bits,a_bits,fp_top1,top1,notes
Flat,Table 1,the flat paper,flat,digits,digits:resnet8,4,4,98.5,90.1,
Flat,Table 1,the flat paper,ZeroQ,digits,digits:resnet8,4,4,98.5,50.0,
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A plugin in one file with published numbers, of its method and of another."""
    folder = tmp_path / "plugin"
    folder.mkdir()
    text = (PLUGINS / "flat.py").read_text().replace("import Context,", "import Context, FileOffer,")
    offer = f"""FileOffer("flat", {str(folder / "claims.csv")!r})"""
    (folder / "claims.csv").write_text(CLAIMS)
    file = folder / "flat_with_claims.py"
    file.write_text(f"{text}\n\n@hookimpl\ndef dfqbench_claims(): return [{offer}]\n")
    return file


def test_published_numbers_of_a_plugin(call: Call, out: Path, plugin: Path) -> None:
    for method in ("flat", "zeroq"):
        write_record(out, "three", method, method=method, budget="paper")
    arguments = ("table", "three", "--out", out, "--vs", "paper", "--plugin", plugin)
    claims = {row["method"]: row["claims"] for row in call(*arguments, "--format", "json").json}
    found = {method: [(claim["verdict"], claim["source"]) for claim in claims[method]] for method in claims}
    source = "the flat paper, Table 1"
    assert found == {"flat": [("reproduced", source)], "zeroq": [("above", source)]}
    for fmt in ("text", "md", "latex", "html", "csv"):
        shown = call(*arguments, "--format", fmt).out
        assert "the flat paper" in " ".join(shown.split())
        assert "reproduced" in shown
    without = call("table", "three", "--out", out, "--vs", "paper", "--format", "json").json
    assert [row["claims"] for row in without] == [[], []]

    numbers = call("claims", "--plugin", plugin, "--method", "flat", "--format", "json").json
    assert [(number["top1"], number["implemented"]) for number in numbers] == [(90.1, "flat")]
    page = out / "page.html"
    assert call("report", "three", "--out", out, "--to", page, "--plugin", plugin).status == 0
    assert "90.10 (the flat paper)" in page.read_text()


def test_damaged_file_of_published_numbers_is_a_warning(call: Call, out: Path, plugin: Path) -> None:
    (plugin.parent / "claims.csv").write_text("a,b\n1,2\n")
    output = call("table", "one", "--out", out, "--vs", "paper", "--plugin", plugin)
    assert (output.status, "90.00" in output.out) == (0, True)
    assert all(part in output.err for part in ("warning: claims 'flat' of ", "lacks the column 'source_paper'"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tow"], "unknown run 'tow'; did you mean two"),
        (["--rows", "metod"], "unknown row or column 'metod'; did you mean method"),
        (["--columns", "bits"], "either scheme, or bits and protocol"),
        (["--value", "top"], "unknown value 'top'; did you mean top5 or top1"),
        (["--rows", "model"], "'model' stands for rows or columns twice"),
        (["--vs", "papers"], "unknown comparison 'papers'; did you mean paper"),
    ],
)
def test_wrong_options(call: Call, out: Path, arguments: list[str], message: str) -> None:
    refused(call("table", *arguments, "--out", out), message)
