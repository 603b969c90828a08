"""LaTeX: every form of the table compiles; its text is checked also where nothing can compile it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.report.records import failed, record, scheme
from tests.report.test_layouts import several

from dfqbench.report import parse_layout, render
from dfqbench.report.literature.publication_index import published_index
from dfqbench.report.metrics import METRICS
from dfqbench.report.renderers.escape import latex
from dfqbench.report.renderers.latex import MOST_ROWS
from dfqbench.run.store.record import Record

HOSTILE = "a_b & 100% $x$ #1 {y} ~ ^ \\foo \\end{tabular} <i> | µ é ï ñ Ł Δ × ± … – “q” ✓ 你 \x07 --set ?`\n\nend"
MODELS = ("torchvision:resnet18", "torchvision:mobilenet_v2")
NEEDED = {"booktabs.sty", "graphicx.sty"}
TIMEOUT = 180


def paper(seeds: int = 3) -> list[Record]:
    """Seeds, controls, failures with footnotes, collapsed cells and text from strangers, where papers print numbers."""
    shared = {"target": "imagenet", "budget": "paper", "dataset": {"name": "imagenet", "n": 50000, "subset": None}}
    made = []
    for at, method in enumerate(("zeroq", "gdfq", "noise")):
        for model in MODELS:
            for bits in (4, 3):
                cell = f"{method}{model}{bits}"
                kept = {"method": method, "model": {"name": model}, "fp_top1": 71.5, "control": method == "noise"}
                kept["scheme"] = scheme(bits)
                for seed in range(seeds):
                    drop = 10.0 * at - seed
                    made.append(record(f"{cell}{seed}", **shared, **kept, seed=seed, drop=drop, top1=71.5 - drop))
    strange = {"label": HOSTILE, "flags": [HOSTILE], "environment": "e2", "model": {"name": HOSTILE}}
    made.append(record("s", **shared, **strange, method="x"))
    made.append(failed("f", "failed", HOSTILE, HOSTILE, **shared, method="y", model={"name": MODELS[0]}))
    made.append(record("c", **shared, status="collapsed", top1=0.1, method="z", model={"name": MODELS[1]}))
    return made


def forms() -> dict[str, str]:
    """Every form of the table."""
    machines = {"e1": "cuda: Toy_1 & 2", "e2": HOSTILE}
    long = [record(str(at), method=f"m{at}", seed=0) for at in range(2 * MOST_ROWS + 1)]
    return {
        "with claims": render(paper(), "latex", machines, publications=published_index()),
        "without claims": render(paper(1), "latex", machines),
        "no claim known": render([record("a")], "latex", publications=published_index()),
        "by bits": render(paper(), "latex", layout=parse_layout(["method"], ["bits"], ["synthesis", "top1"])),
        "by seed": render(paper(), "latex", layout=parse_layout(["method"], ["seed"], ["top1"])),
        "every value": render(paper(), "latex", layout=parse_layout(["model", "method"], ["scheme"], list(METRICS))),
        "long": render(long, "latex"),
        "bare": render([Record()], "latex"),
        "empty": render([], "latex"),
    }


def test_latex_rows_and_marks() -> None:
    records = [*several(), failed("x", "failed", "50 % of a_b & c", method="odd_1", scheme=scheme(4))]
    text = render(records, "latex")
    assert text.count(r"\begin{tabular}{llrrr}") == text.count(r"\end{tabular}") == 1
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == len(records)
    assert all(len(re.findall(r"(?<!\\)&", line)) == 4 for line in lines)
    assert r" & b & \textbf{86.30 $\pm$1.48}" in body
    assert r"odd\_1 & failed\textsuperscript{1}" in body
    assert r"50 \% of a\_b \& c" in text
    assert body.count(r"\midrule") == 2
    assert body.count(r"\addlinespace") == 2
    assert r"\textit{noise (control)}" in body
    assert "budget short" in text[text.index(r"\caption") : text.index(r"\begin{tabular}")]


def tables(text: str) -> list[str]:
    return re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, flags=re.DOTALL)


@pytest.mark.parametrize("form", forms())
def test_latex_structure(form: str) -> None:
    text = forms()[form]
    assert text.isascii()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    bare = re.sub(r"\\[\\{}%&$#_]", "", text)
    assert bare.count("{") == bare.count("}")
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == len(tables(text))
    for table in tables(text):
        [columns] = re.findall(r"\\begin\{tabular\}\{((?:[lr]|p\{16em\})+)\}", table)
        width = len(columns.replace("p{16em}", "p"))
        body = table[table.index(r"\toprule") : table.index(r"\bottomrule")]
        lines = [line for line in body.splitlines() if line.endswith((r"\\", r"\tabularnewline"))]
        assert len(lines) <= MOST_ROWS + 2
        for line in lines:
            spans = sum(int(span) - 1 for span in re.findall(r"\\multicolumn\{(\d+)\}", line))
            assert len(re.findall(r"(?<!\\)&", line)) + 1 + spans == width
    # Whatever strangers write, no command but the form's own is left.
    commands = set(re.findall(r"\\([A-Za-z]+)", text.replace(r"\\", "")))
    assert "foo" not in commands


def test_long_table_is_split_into_floats() -> None:
    parts = tables(forms()["long"])
    assert len(parts) == 3
    found = [name for part in parts for name in re.findall(r"& m(\d+) &", part)]
    assert sorted(found, key=int) == [str(at) for at in range(2 * MOST_ROWS + 1)]
    assert ["Continued." in part for part in parts] == [False, True, True]


def test_floats_end_between_schemes() -> None:
    made = [record(f"{bits}{at}", method=f"m{at}", scheme=scheme(bits)) for bits in (4, 3) for at in range(20)]
    assert [len(re.findall(r"& m\d+ &", part)) for part in tables(render(made, "latex"))] == [20, 20]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("é ï Å ç", r"\'{e} \"{\i} \r{A} \c{c}"),
        ("µ Δ σ ≤ −1", r"$\mu$ $\Delta$ $\sigma$ $\leq$ $-$1"),
        ("你 Ł", "[U+4F60] [U+0141]"),
        ("a | b", r"a \textbar{} b"),
        ("\\input{x} $a^c$ <&>", r"\textbackslash{}input\{x\} \$a\textasciicircum{}c\$ \textless{}\&\textgreater{}"),
        ("-0.19 ± 1%", r"$-$0.19 $\pm$ 1\%"),
        ("2025-01 a-1\n\x07b", "2025-01 a-1 b"),
        ("--set", "-{}-set"),
    ],
)
def test_latex_characters(text: str, shown: str) -> None:
    assert latex(text) == shown


def missing() -> str:
    """What the compiler lacks here, or empty."""
    if shutil.which("pdflatex") is None:
        return "pdflatex"
    files = (subprocess.run(["kpsewhich", file], capture_output=True, check=False) for file in sorted(NEEDED))
    return " ".join(found.args[1] for found in files if found.returncode)


@pytest.mark.timeout(TIMEOUT + 30)
@pytest.mark.skipif(bool(missing()), reason=f"tables are not compiled, only their structure is checked: no {missing()}")
def test_latex_compiles(tmp_path: Path) -> None:
    head, tables = r"\documentclass{article} \usepackage{booktabs,graphicx}", "\n\n\\clearpage\n".join(forms().values())
    document = "\n".join([head, r"\begin{document}", tables, r"\end{document}", ""])
    (tmp_path / "tables.tex").write_text(document, encoding="ascii")
    arguments = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "tables.tex"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, timeout=TIMEOUT, check=False)
    log = done.stdout.decode("latin-1")
    assert done.returncode == 0, log[-2000:]
    assert (tmp_path / "tables.pdf").stat().st_size > 1000
    assert "Overfull \\hbox" not in log
    assert "Float too large" not in log
