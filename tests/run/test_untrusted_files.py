from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import dfqbench
from dfqbench.api import InputError, Unavailable
from dfqbench.grid.load import read_grid
from dfqbench.models.weights import read_weights
from dfqbench.quant import parse_scheme
from dfqbench.run.store.record import Record
from dfqbench.run.store.run_folder import RunFolder, read_records
from dfqbench.run.store.source_cache import read_description
from dfqbench.targets.manifest import read_manifest

CARD = {"input_size": [1, 8, 8], "mean": [0.5], "std": [0.5], "classes": 10}


def test_student_may_not_name_code(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(mark)!r}, 'w')\ndef network(): ...\n")
    model = {
        **{"target": "digits", "name": "evil", "ref": f"py:{evil}:network", "args": [], "kwargs": {}},
        **{"weights": None, "random_seed": None, "card": CARD, "top1": None, "trusted": True, "sha256": None},
    }
    (tmp_path / "student.json").write_text(json.dumps({"model": model, "scheme": parse_scheme("w4a4").as_dict()}))
    save_file({"x": torch.zeros(1)}, tmp_path / "student.safetensors")
    with pytest.raises((InputError, Unavailable), match="may not name code"):
        dfqbench.load_student(tmp_path)
    assert not mark.exists()


def test_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    plain, bomb = tmp_path / "plain.pt", tmp_path / "bomb.pt"
    torch.save({"w": torch.zeros(1 << 20)}, plain)
    assert read_weights(plain)["w"].numel() == 1 << 20
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert bomb.stat().st_size < 1 << 16
    with pytest.raises(InputError, match="it is compressed or forged"):
        read_weights(bomb)


def test_tensor_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(1 << 40)}, tmp_path / "view.pt")
    with pytest.raises(InputError, match="claims tensors of"):
        read_weights(tmp_path / "view.pt")


@pytest.mark.parametrize("read", [read_grid, read_manifest])
def test_endless_toml_is_an_input_error(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_text("x = " + "[" * 100_000)
    with pytest.raises(InputError, match="not valid TOML"):
        read(path)
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(InputError, match="larger than 4 MiB"):
        read(path)


def test_huge_files_are_not_read(tmp_path: Path) -> None:
    folder, _ = RunFolder(tmp_path / "run").new_attempt("aa11")
    with (folder / "record.json").open("wb") as stream:
        stream.truncate(1 << 40)
    records, warnings = read_records(tmp_path)
    assert (records, len(warnings)) == ([], 1)
    (tmp_path / "source.json").write_text("[" * 100_000)
    assert read_description(tmp_path, None) is None


def test_cell_id_in_a_record_is_not_used_as_a_path(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    folder, _ = run.new_attempt("aa11")
    run.write_record(folder, Record(schema=1, cell_id="../../../outside", status="ok", attempt=1))
    assert run.latest("aa11") is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
