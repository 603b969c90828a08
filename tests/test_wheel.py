"""The wheel contains the files that an installation needs, and no other packages."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUFFIXES = {".css", ".csv", ".html", ".jinja", ".js", ".py", ".pyi", ".safetensors", ".toml", ".txt", ".typed"}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of a wheel built from this tree."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=250)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_wheel_has_two_packages_only(names: list[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dfqbench", "dfqbench_methods"}


def test_wheel_has_every_file(names: list[str]) -> None:
    """An ignore rule of the repository must not keep a package or its data out of the wheel."""
    roots = (ROOT / "benchmark", ROOT / "methods")
    files = {file.relative_to(root).as_posix() for root in roots for file in root.rglob("*") if file.suffix in SUFFIXES}
    assert {name.rpartition(".")[2] for name in files} == {suffix[1:] for suffix in SUFFIXES}
    assert len(files) > 250
    assert files <= set(names)
