from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from dfqbench.api import InputError
from dfqbench.targets.spec import DatasetSpec, digits_file, fingerprint, guarded_paths


def test_fingerprint_of_file_is_hash_of_content(write_npz: Callable[..., Path]) -> None:
    path = write_npz("a.npz")
    assert fingerprint(DatasetSpec("x", "npz", path, None, 10)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_fingerprint_of_folder_covers_names_and_sizes(tmp_path: Path) -> None:
    def of(folder: str, name: str, content: bytes) -> str:
        path = tmp_path / folder / "n01440764" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return fingerprint(DatasetSpec("x", "imagenet-folder", tmp_path / folder, None, 1000))

    first = of("one", "a.JPEG", b"abc")
    assert first == of("two", "a.JPEG", b"abc")
    assert len({first, of("three", "a.JPEG", b"abcd"), of("four", "b.JPEG", b"abc")}) == 3


def test_fingerprint_of_digits_and_of_a_missing_file(tmp_path: Path) -> None:
    assert len(fingerprint(DatasetSpec("digits", "digits", None, None, 10))) == 64
    with pytest.raises(InputError, match="cannot read"):
        fingerprint(DatasetSpec("x", "npz", tmp_path / "gone.npz", None, 10))


def test_from_dict_error_is_one_line(tmp_path: Path) -> None:
    data = DatasetSpec("x", "npz", tmp_path, None, 10).as_dict()
    del data["kind"]
    with pytest.raises(ValueError, match="kind") as caught:
        DatasetSpec.from_dict(data | {"classes": "many"})
    assert "\n" not in str(caught.value)


def test_guarded_paths_cover_folders_of_classes_that_are_links(tmp_path: Path) -> None:
    val, elsewhere = tmp_path / "val", tmp_path / "elsewhere"
    for folder in (val, elsewhere):
        folder.mkdir()
    (val / "n01440764").symlink_to(elsewhere)
    assert elsewhere in guarded_paths(DatasetSpec("x", "imagenet-folder", val, None, 10))


def test_guarded_paths_cover_links_and_digits(tmp_path: Path) -> None:
    real, link, train = tmp_path / "real.npz", tmp_path / "link.npz", tmp_path / "train.npz"
    real.touch()
    link.symlink_to(real)
    assert set(guarded_paths(DatasetSpec("x", "npz", link, train, 10))) == {real, link, train}
    digits = digits_file()
    assert digits is not None
    assert digits.is_file()
    assert digits.parent in guarded_paths(DatasetSpec("digits", "digits", None, None, 10))
