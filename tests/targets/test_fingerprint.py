from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from dfqbench.api import InputError
from dfqbench.models.identity import file_sha256
from dfqbench.targets.fingerprint import fingerprint
from dfqbench.targets.spec import DatasetSpec


def test_a_file_is_hashed_by_content(write_npz: Callable[..., Path]) -> None:
    path = write_npz("a.npz")
    dataset = DatasetSpec("x", "npz", path, None, 10)
    assert fingerprint(dataset) == file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    before = fingerprint(dataset)
    path.write_bytes(path.read_bytes() + b"x")
    assert fingerprint(dataset) != before


def test_a_folder_is_hashed_by_names_and_sizes(tmp_path: Path) -> None:
    for parent in ("one", "two"):
        (tmp_path / parent / "n01440764").mkdir(parents=True)
        (tmp_path / parent / "n01440764" / "a.JPEG").write_bytes(b"abc")
    one, two = (DatasetSpec("x", "imagenet-folder", tmp_path / name, None, 1000) for name in ("one", "two"))
    before = fingerprint(one)
    assert before == fingerprint(two)
    (tmp_path / "two" / "n01440764" / "a.JPEG").write_bytes(b"abcd")
    assert fingerprint(two) != before
    (tmp_path / "one" / "n01440764" / "a.JPEG").rename(tmp_path / "one" / "n01440764" / "b.JPEG")
    assert fingerprint(one) != before


def test_digits_have_a_fingerprint() -> None:
    assert len(fingerprint(DatasetSpec("digits", "digits", None, None, 10))) == 64


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        fingerprint(DatasetSpec("x", "npz", tmp_path / "gone.npz", None, 10))
