from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from dfqbench.api import InputError
from dfqbench.models.identity import file_sha256
from dfqbench.targets.spec import DatasetSpec, digits_file, fingerprint, guarded_paths


def test_fingerprint_of_file_is_hash_of_content(write_npz: Callable[..., Path]) -> None:
    path = write_npz("a.npz")
    dataset = DatasetSpec("x", "npz", path, None, 10)
    assert fingerprint(dataset) == file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    before = fingerprint(dataset)
    path.write_bytes(path.read_bytes() + b"x")
    assert fingerprint(dataset) != before


def test_fingerprint_of_folder_covers_names_and_sizes(tmp_path: Path) -> None:
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


def test_fingerprint_of_digits() -> None:
    assert len(fingerprint(DatasetSpec("digits", "digits", None, None, 10))) == 64


def test_fingerprint_of_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        fingerprint(DatasetSpec("x", "npz", tmp_path / "gone.npz", None, 10))


def test_from_dict_error_is_one_line(tmp_path: Path) -> None:
    data = DatasetSpec("x", "npz", tmp_path, None, 10).as_dict()
    del data["kind"]
    with pytest.raises(ValueError, match="kind") as caught:
        DatasetSpec.from_dict(data | {"classes": "many"})
    assert "\n" not in str(caught.value)


def test_guarded_paths_cover_links_and_digits(tmp_path: Path) -> None:
    real, link, train = tmp_path / "real.npz", tmp_path / "link.npz", tmp_path / "train.npz"
    real.touch()
    link.symlink_to(real)
    assert set(guarded_paths(DatasetSpec("x", "npz", link, train, 10))) == {real, link, train}
    digits = digits_file()
    assert digits is not None
    assert digits.is_file()
    assert digits in guarded_paths(DatasetSpec("digits", "digits", None, None, 10))
