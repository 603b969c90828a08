"""`methods new`: the package installs, runs, and is clean; bad requests write nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from dfqbench.api import UsageError
from dfqbench.scaffold import KINDS, new_package


def run(arguments: list[str], cwd: Path, source: Path | None = None) -> str:
    """Run Python, which must succeed."""
    paths = [str(source or ""), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module", params=sorted(KINDS))
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A new package, built as a wheel and unpacked: folder, site folder, name."""
    place = tmp_path_factory.mktemp(request.param)
    folder, *_ = new_package(f"my-{request.param}", request.param, place)
    run(["-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(folder)], place)
    (wheel,) = place.glob("*.whl")
    run(["-m", "zipfile", "-e", str(wheel), str(place / "site")], place)
    return folder, place / "site", folder.name


@pytest.mark.slow
def test_package_runs_unchanged(installed: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, site, name = installed
    printed = run(["-m", "dfqbench", "run", "--grid", "smoke", "--methods", name], tmp_path, site)
    [row] = [line for line in printed.splitlines() if name in line and not line.startswith("*")]
    assert any(character.isdigit() for character in row)


@pytest.mark.slow
def test_package_passes_conformance_without_a_warning(installed: tuple[Path, Path, str]) -> None:
    folder, site, _ = installed
    assert "15 passed" in run(["-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"], folder, site)


def test_published_numbers_have_the_columns_of_the_host(tmp_path: Path) -> None:
    folder, *_ = new_package("mine", "images", tmp_path)
    (claims,) = folder.rglob("claims.csv")
    published = resources.files("dfqbench.report.literature").joinpath("published.csv").read_text(encoding="utf-8")
    assert claims.read_text(encoding="utf-8").strip() == published.splitlines()[0]


@pytest.fixture(scope="module")
def types_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of mypy that the kinds share."""
    return tmp_path_factory.mktemp("types")


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_package_passes_ruff_and_mypy(kind: str, tmp_path: Path, types_cache: Path) -> None:
    folder, *_ = new_package("my_method-2", kind, tmp_path)
    for arguments in (["check", "."], ["format", "--check", "."]):
        run(["-m", "ruff", *arguments, "--no-cache"], folder)
    run(["-m", "mypy", "--cache-dir", str(types_cache)], folder)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_code_of_the_author_is_short(kind: str, tmp_path: Path) -> None:
    folder, *_ = new_package("mine", kind, tmp_path)
    lines = [line.strip() for file in folder.glob("src/*/*.py") for line in file.read_text("utf-8").splitlines()]
    assert sum(bool(line) and not line.startswith("#") for line in lines) <= 80


def test_names(tmp_path: Path) -> None:
    folder, *files = new_package("my_method-2", "images", tmp_path)
    assert folder == tmp_path / "my_method-2"
    names = {file.relative_to(folder).as_posix() for file in files}
    assert {"src/dfqbench_my_method_2/plugin.py", "tests/test_my_method_2.py"} <= names
    text = (folder / "src/dfqbench_my_method_2/plugin.py").read_text()
    assert 'Offer("my_method-2", "dfqbench_my_method_2.plugin:MyMethod2", api=1)' in text
    assert 'name = "dfqbench-my-method-2"' in (folder / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", ["", "My", "1st", "a b", "../up", "a--b", "a_", "ü", "a" + "/b", "-x"])
def test_bad_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a method; begin with"):
        new_package(name, "images", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown kind 'image'; did you mean images"):
        new_package("mine", "image", tmp_path)
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        new_package("mine", "images", tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"
