"""Follow the tutorial from an empty folder to a method in the table."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from blocks import DOCS, blocks
from dfqbench.scaffold import new_package

TUTORIAL = blocks(DOCS / "tutorial.md")
STEPS = [block for block in TUTORIAL if block.mark == "slow: tutorial"]
EDITS = {block.title: block.text for block in TUTORIAL if block.title in {"loss", "loop", "parameter"}}


def shell(text: str, folder: Path) -> str:
    # As in an activated environment: the interpreter's folder comes first.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-ec", text], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=1500
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def edited(text: str, pattern: str, replacement: str) -> str:
    result, count = re.subn(pattern, lambda _: replacement, text, flags=re.MULTILINE | re.DOTALL)
    assert count == 1, f"the tutorial edits lines that the package does not have: {pattern}"
    return result


def apply(package: Path) -> None:
    """Edit the package as the section 'Your idea' says."""
    file = package / "src/dfqbench_calm/synthesizer.py"
    text = edited(file.read_text(), r"def smoothness_loss.*?\n\n\n", EDITS["loss"] + "\n\n")
    text = edited(text, r"^            teacher\(images\)\n            loss = [^\n]*\n", EDITS["loop"])
    file.write_text(text)
    file = package / "src/dfqbench_calm/plugin.py"
    file.write_text(edited(file.read_text(), r"^    smoothness: [^\n]*\n", EDITS["parameter"]))


@pytest.mark.skipif(os.environ.get("DFQBENCH_DOCS") != "slow", reason="installs a package: `tox -e docs`")
@pytest.mark.timeout(6000)
def test_following_the_tutorial_makes_a_row(tmp_path: Path) -> None:
    first, *others = STEPS
    try:
        out = shell(first.text, tmp_path)
        assert re.search(r"calm +\d+\.\d+", out), out
        apply(tmp_path / "calm")
        printed = [shell(step.text, tmp_path / "calm") for step in others]
        assert "failed" not in printed[0]
        assert "15 passed" in printed[0]
        assert re.search(r"calm +\d+\.\d+", printed[-1]), printed[-1]
    finally:
        shell(f"{sys.executable} -m pip uninstall --yes --quiet dfqbench-calm", tmp_path)


def test_edits_fit_the_package(tmp_path: Path) -> None:
    folder, *_ = new_package("calm", "images", tmp_path)
    apply(folder)
    for name in ("synthesizer.py", "plugin.py"):
        compile((folder / "src/dfqbench_calm" / name).read_text(), name, "exec")
