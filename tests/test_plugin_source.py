"""Source files of a method and their hash, which depends on their text and not on their place."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from dfqbench.api import PluginError
from dfqbench.plugins import load_plugins, source_files, source_hash

FILES = {
    "mypkg/__init__.py": "",
    "mypkg/alpha/__init__.py": "",
    "mypkg/alpha/plugin.py": "from mypkg.shared.losses import loss\nimport json\n",
    "mypkg/alpha/inner/deep.py": "def late():\n    from ...late import thing\n",
    "mypkg/shared/__init__.py": "from . import tables\n",
    "mypkg/shared/tables.py": "",
    "mypkg/shared/losses.py": "from . import constants\n",
    "mypkg/shared/constants.py": "ALPHA = 1\n",
    "mypkg/shared/unused.py": "",
    "mypkg/late.py": "thing = 1\n",
    "mypkg/beta/__init__.py": "",
    "mypkg/beta/plugin.py": "",
    "single.py": "import mypkg\n",
}
BETA = {"mypkg/__init__.py", "mypkg/beta/__init__.py", "mypkg/beta/plugin.py"}
ALPHA = set(FILES) - BETA - {"mypkg/shared/unused.py", "single.py"} | {"mypkg/__init__.py"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def relative(files: list[Path], folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in files}


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ("mypkg.alpha.plugin:Alpha", ALPHA),
        ("mypkg.alpha:Alpha", ALPHA),
        ("mypkg.beta.plugin:Beta", BETA),
        ("single:Thing", {"single.py"}),
    ],
)
def test_folder_and_closure_of_imports(site: Path, load: str, expected: set[str]) -> None:
    assert relative(source_files(load), site) == expected
    assert "mypkg" not in sys.modules


def test_local_file(site: Path) -> None:
    assert source_files("anything:Thing", site / "single.py") == [site / "single.py"]


def test_file_with_a_syntax_error_is_included(site: Path) -> None:
    (site / "mypkg/alpha/broken.py").write_text("def (")
    assert "mypkg/alpha/broken.py" in relative(source_files("mypkg.alpha.plugin:Alpha"), site)


@pytest.mark.parametrize("load", ["absent_package.module:X", "mypkg.absent:X"])
def test_missing_module(site: Path, load: str) -> None:
    with pytest.raises(PluginError, match="not found"):
        source_files(load)


def test_hash_covers_imported_files_only(site: Path) -> None:
    before = source_hash(source_files("mypkg.alpha.plugin:Alpha"))
    (site / "mypkg/shared/unused.py").write_text("changed = 1\n")
    (site / "mypkg/beta/plugin.py").write_text("changed = 1\n")
    assert source_hash(source_files("mypkg.alpha.plugin:Alpha")) == before
    (site / "mypkg/shared/constants.py").write_text("ALPHA = 2\n")
    assert source_hash(source_files("mypkg.alpha.plugin:Alpha")) != before


def test_hash_does_not_depend_on_place_order_or_line_ends(site: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    files = source_files("mypkg.alpha.plugin:Alpha")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(site / "mypkg", elsewhere / "mypkg")
    moved = [elsewhere / file.relative_to(site) for file in files]
    (elsewhere / "mypkg/late.py").write_bytes(b"thing = 1\r\n")
    assert source_hash(reversed(moved)) == source_hash(files)
    (elsewhere / "mypkg/late.py").rename(elsewhere / "mypkg/later.py")
    renamed = [file.with_name("later.py") if file.name == "late.py" else file for file in moved]
    assert source_hash(renamed) != source_hash(files)


def test_built_in_methods_have_source() -> None:
    offers = load_plugins().methods
    for offer in (offers[name] for name in offers if name != "none"):  # the host's own
        names = {file.name for file in source_files(offer.load, offer.path)}
        assert "plugin.py" in names
        assert len(names) > 1
