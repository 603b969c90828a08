"""The wheel contains the files that an installation needs, and no other packages."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of a wheel built from this tree."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=250)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.mark.parametrize(
    "file",
    [
        "dfqbench/py.typed",
        "dfqbench/quant/__init__.pyi",
        "dfqbench/synth/__init__.pyi",
        "dfqbench_methods/py.typed",
        "dfqbench/models/weights/digits-resnet8.safetensors",
        "dfqbench/targets/wnids.txt",
        "dfqbench/report/literature/published.csv",
        "dfqbench/report/html/templates/report.html",
        "dfqbench/report/html/templates/report.js",
        "dfqbench/report/html/templates/style.css",
        "dfqbench/grid/presets/w4a4.toml",
        "dfqbench/grid/presets/smoke.toml",
        "dfqbench_methods/zeroq/synthesizer.py",
        "dfqbench/scaffold/templates/common/pyproject.toml.jinja",
        "dfqbench/scaffold/templates/common/src/PACKAGE/py.typed.jinja",
        "dfqbench/scaffold/templates/images/src/PACKAGE/synthesizer.py.jinja",
        "dfqbench/scaffold/templates/generator/src/PACKAGE/synthesizer.py.jinja",
    ],
)
def test_wheel_has_file(file: str, names: list[str]) -> None:
    assert file in names


def test_wheel_has_two_packages_only(names: list[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dfqbench", "dfqbench_methods"}


def test_wheel_has_every_module(names: list[str]) -> None:
    """An ignore rule of the repository must not keep a package out of the wheel."""
    roots = (ROOT / "benchmark", ROOT / "methods")
    modules = {str(file.relative_to(root).as_posix()) for root in roots for file in root.rglob("*.py")}
    assert len(modules) > 200
    assert modules <= set(names)
