"""The library is built once, kept, and left out with a reason where it cannot be built."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from dfqbench.native import build

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


def use_source(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the next build compile something else."""
    (folder / "kernels").mkdir(exist_ok=True)
    (folder / "kernels" / "library.cpp").write_text(text)
    monkeypatch.setattr(build, "SOURCES", folder / "kernels")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(build.SWITCH, raising=False)
    monkeypatch.delenv("CXX", raising=False)
    use_source('extern "C" int answer() { return 42; }\n', tmp_path, monkeypatch)
    build._built.cache_clear()
    return tmp_path / "cache"


@needs_compiler
def test_one_build_serves_later_processes(own_cache: Path) -> None:
    first = build.built()
    assert first.path is not None
    assert first.path.parent == own_cache / "dfqbench" / "native"
    assert [file.name for file in first.path.parent.iterdir()] == [first.path.name]
    assert first.compiler in first.described
    made = first.path.stat().st_mtime_ns
    build._built.cache_clear()  # as a new process
    assert build.built() == first
    assert first.path.stat().st_mtime_ns == made


@needs_compiler
def test_another_source_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build._key("g++ 1", ["g++"])
    (build.SOURCES / "beside.h").write_text("// what the library includes\n")
    included = build._key("g++ 1", ["g++"])
    assert included != before
    use_source("// changed\n", tmp_path, monkeypatch)
    assert build._key("g++ 1", ["g++"]) not in {before, included}
    assert build._key("g++ 2", ["g++"]) != build._key("g++ 1", ["g++"])


def test_without_a_compiler_the_reason_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = build.built()
    assert found.path is None
    assert found.described == "torch"
    assert "no-such-compiler" in found.reason
    assert "CXX" in found.reason


@needs_compiler
def test_a_compiler_that_fails_is_named_and_leaves_nothing_behind(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_source("this is no C++\n", tmp_path, monkeypatch)
    found = build.built()
    assert found.path is None
    assert found.reason.startswith("the compiler failed: ")
    assert list((own_cache / "dfqbench" / "native").iterdir()) == []


@needs_compiler
def test_a_cache_that_cannot_be_written_is_a_reason(own_cache: Path) -> None:
    own_cache.write_text("a file where a folder should be")
    found = build.built()
    assert found.path is None
    assert str(own_cache) in found.reason


@needs_compiler
def test_a_torn_library_is_built_again(own_cache: Path) -> None:
    first = build.built()
    assert first.path is not None
    first.path.write_bytes(b"")
    build._built.cache_clear()
    assert build.built() == first
    assert first.path.stat().st_size > 0


@needs_compiler
def test_a_library_that_cannot_be_loaded_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_source('extern "C" int absent();\nint (*needed)() = absent;\n', tmp_path, monkeypatch)
    found = build.built()
    assert found.path is None
    assert found.reason.startswith("what was compiled cannot be loaded: ")
    assert "absent" in found.reason


@needs_compiler
def test_the_compiler_may_have_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "c++ -g0")
    assert build.built().path is not None


def test_the_switch_leaves_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.SWITCH, "0")
    assert build.built().path is None
    assert build.SWITCH in build.built().reason


@pytest.mark.skipif(os.environ.get("CXX") is not None, reason="a compiler is named by hand")
@needs_compiler
def test_nothing_lets_the_compiler_change_results() -> None:
    assert "-ffp-contract=off" in build.FLAGS
    assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations"} & set(build.FLAGS)
