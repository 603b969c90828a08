"""The source without images: cells that need none, and those that do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dfqbench.api import Unavailable, has_images
from dfqbench.cli.main import main
from dfqbench.synth.no_images import NoSource
from pretend import plan_of


def test_drawing_from_no_images_is_refused() -> None:
    source = NoSource()
    assert not has_images(source)
    with pytest.raises(Unavailable, match="the source 'none' has no images, and this quantizer draws some; cross it"):
        source.sample(1)


@pytest.mark.parametrize(
    ("methods", "settings", "rules"),
    [
        ("none+squant,noise+squant", [], ["bn", "minmax"]),
        ("none+squant,noise+squant", ["squant.range=mean", "squant.without_images=noise"], ["mean", "mean"]),
        ("none,noise+squant", ["squant.range=bn"], ["minmax", "bn"]),
    ],
)
def test_range_rule_of_a_cell_without_images(methods: str, settings: list[str], rules: list[str]) -> None:
    cells = plan_of(methods, grid="w4a4", on="digits", settings=settings).cells
    assert [cell.range_rule for cell in cells] == rules


def test_a_quantizer_that_draws_images_is_a_row_and_the_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        "--grid",
        "smoke",
        "--methods",
        "none,none+distill:gdfq,none+squant,none+rex",
        "--bits",
        "w4a4",
        "--limit",
        "20",
    ]
    monkeypatch.setattr("sys.argv", ["dfqbench", "run", *arguments, "--out", str(tmp_path), "--executor", "inline"])
    main()
    records = {r["label"]: r for r in (json.loads(file.read_text()) for file in tmp_path.rglob("record.json"))}
    assert {label: record["status"] for label, record in records.items()} == {
        "none": "unavailable",
        "none+distill:gdfq": "unavailable",
        "none+squant": "ok",
        "none+rex": "ok",
    }
    assert "has no images" in records["none+distill:gdfq"]["error"]["message"]
    squant = records["none+squant"]
    assert (squant["range"], squant["used_images"], squant["levels_ok"]) == ("bn", 0, True)
    assert "images_not_kept" not in squant["flags"]
    assert squant["counts"]["images"] == 0
    rex = records["none+rex"]
    assert (rex["used_images"], rex["levels_ok"], rex["coverage"]["weight_terms"]) == (0, True, 2.0)
    assert squant["coverage"]["weight_terms"] == 1.0
    assert rex["coverage"]["bit_operations"] == 2 * squant["coverage"]["bit_operations"]
    assert rex["coverage"]["macs_quantized"] == squant["coverage"]["macs_quantized"]
