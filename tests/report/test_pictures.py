from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.report.records import record

from dfqbench.api import InputError
from dfqbench.report.pictures.draw import _captions, draw_pictures
from dfqbench.report.pictures.grid import GAP, LEFT, TEXT, TILE, class_grid
from dfqbench.report.pictures.images import load_images, pixels
from dfqbench.run.store.record import Record

CARD = {"mean": [0.5, 0.25, 0.0], "std": [0.5, 0.5, 1.0], "input_size": [3, 8, 8]}


def shown(cell: str = "c", **changes: Any) -> Record:
    return record(cell, preprocessing={"card": CARD}, **changes)


def test_pixels_undo_normalisation() -> None:
    images = np.zeros((2, 3, 8, 8), np.float32)
    images[1] = 100.0
    images[0, :, 0, 0] = np.nan
    found = pixels(images, shown())
    assert found.shape == (2, 8, 8, 3)
    assert found[0, 1, 1].tolist() == [128, 64, 0]
    assert found[0, 0, 0].tolist() == [0, 0, 0]
    assert found[1, 1, 1].tolist() == [255, 255, 255]
    grey = pixels(
        np.zeros((1, 1, 8, 8), np.float32), record("c", preprocessing={"card": {"mean": [0.5], "std": [0.3]}})
    )
    assert grey[0, 0, 0].tolist() == [128, 128, 128]


@pytest.mark.parametrize("card", [{}, {"mean": [0.5], "std": [0.5]}, {"mean": ["x"] * 3, "std": [1.0] * 3}])
def test_unknown_normalisation_is_an_input_error(card: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="how its 3 channels were normalised"):
        pixels(np.zeros((1, 3, 8, 8), np.float32), record("c", preprocessing={"card": card}))


def test_captions_by_class() -> None:
    answers = {"answers": [3, 1, 2], "confidences": [0.912, 0.5, 0.25]}
    order, words = _captions(shown(diagnostics=answers), 3, [3, 1, 1])
    assert order == [1, 2, 0]
    assert words == ["1\n50 %", "1 > 2\n25 %", "3\n91 %"]
    order, words = _captions(shown(diagnostics=answers), 3, None)
    assert order == [1, 2, 0]
    assert words == ["~1\n50 %", "~2\n25 %", "~3\n91 %"]
    assert _captions(shown(), 2, [5, 4]) == ([1, 0], ["4", "5"])
    assert _captions(shown(diagnostics={"answers": ["x"], "confidences": [1]}), 1, None) == ([0], [""])


def test_class_and_confidence_are_two_lines() -> None:
    images = np.zeros((1, 8, 8, 3), np.uint8)
    grid = class_grid(images, ["0\n91 %"])
    assert grid.height == TILE + 2 * TEXT + 2 * GAP
    ink = np.asarray(grid.convert("L"))[GAP + TILE :] < 128
    assert ink[:TEXT].any()
    assert ink[TEXT:].any()
    assert class_grid(images, ["0"]).height == TILE + TEXT + 2 * GAP


def test_one_grid_or_reason_for_each_method(tmp_path: Path) -> None:
    attempts = []
    for name, top1 in (("a", 50.0), ("b", 60.0)):
        for seed in (0, 1):
            folder = tmp_path / f"{name}{seed}" / "attempt-1"
            folder.mkdir(parents=True)
            images = np.full((10, 3, 8, 8), 0.1 * seed, np.float32)
            save_file({"images": images, "labels": np.arange(10) % 3}, folder / "images.safetensors")
            attempts.append((shown(f"{name}{seed}", method=name, seed=seed, top1=top1), folder))
    training = tmp_path / "a0" / "training"
    training.mkdir()
    for step in (1, 20, 100):
        save_file({"images": np.zeros((8, 3, 8, 8), np.float16)}, training / f"images-{step}.safetensors")
    (training / "student-1.safetensors").write_bytes(b"")
    found, [problem] = draw_pictures([*attempts, (shown("absent", method="c"), tmp_path)])
    assert re.match("c absent: .* is missing", problem)
    assert [(picture.method, picture.over_training) for picture in found] == [("a", False), ("a", True), ("b", False)]
    assert found[0].image.size == (8 * (TILE + GAP) + GAP, 2 * (TILE + TEXT + GAP) + GAP)
    assert found[1].image.size == (LEFT + 8 * (TILE + GAP) + GAP, 3 * (TILE + GAP) + GAP)
    # A pixel of the first image is the card's mean.
    assert found[0].image.getpixel((GAP + 5, GAP + 5)) == (128, 64, 0)


def test_load_images(tmp_path: Path) -> None:
    file = tmp_path / "images.safetensors"
    with pytest.raises(InputError, match="is missing; the attempt kept no images"):
        load_images(file)
    save_file({"images": np.zeros((4, 3, 8, 8), np.float16), "labels": np.eye(4, dtype=np.float32)}, file)
    images, labels = load_images(file)
    assert images.dtype == np.float32
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 3]
    for shape in ((2, 3, 4), (3, 3, 8, 8)):
        save_file({"images": np.zeros(shape, np.float32), "labels": np.zeros(2)}, file)
        with pytest.raises(InputError, match="does not hold images"):
            load_images(file)
    file.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        load_images(file)
