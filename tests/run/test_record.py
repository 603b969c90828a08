from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from dfqbench.report.renderers.csv import COLUMNS
from dfqbench.run.store.record import SCHEMA, Record, json_schema
from dfqbench.run.store.record_parts import Diagnostics

PUBLISHED = Path(__file__).parents[2] / "docs" / "reference" / "record.schema.json"
SCHEMA_0: dict[str, Any] = {
    "cell_id": "aa11",
    "status": "ok",
    "method": "zeroq",
    "model": "resnet18",
    "scheme": "w4a4@gdfq",
}
SCHEMA_0 |= {"schema": 0, "top1": 61.5}
SCHEMA_1: dict[str, Any] = json.loads((Path(__file__).parent / "records" / "schema-1.json").read_text())
LATER = {
    *("changed_params", "together_with", "student_from", "oracle_asked", "curve", "revision", "source_kind"),
    *("source_images", "wrote_outside", "resumed", "correct", "violations", "warnings", "diagnostics"),
}
"""Keys that the first records of schema 1 do not have."""
FIRST_OF_SCHEMA_1 = {key: value for key, value in SCHEMA_1.items() if key not in LATER}


@pytest.mark.parametrize("data", [SCHEMA_0, FIRST_OF_SCHEMA_1, SCHEMA_1], ids=["0", "1 first", "1"])
def test_earlier_schemas_are_read_without_loss(data: dict[str, Any]) -> None:
    record = Record.from_json(json.dumps(data).encode())
    assert record.as_dict() == data
    assert record.schema_number < SCHEMA
    assert (record.model.name or "")[-1] == "8"
    assert record.scheme.label == "w4a4@gdfq"
    assert record.top1 is not None


def test_missing_keys_have_neutral_values() -> None:
    record = Record.from_data(SCHEMA_0)
    assert (record.attempt, record.flags, record.changed_params, record.oracle_asked) == (0, [], [], 0)
    assert (record.seconds.wall, record.counts.images, record.dataset.n) == (None, None, None)
    assert (record.cpu_seconds.synthesis, record.cpu_seconds.quantization) == (None, None)
    assert (record.error, record.oracle, record.coverage, record.curve, record.peak_mib.largest) == (*[None] * 4, 0.0)
    assert (record.diagnostics.version, record.preprocessing.card) == (None, None)


def test_values_are_attributes() -> None:
    record = Record.from_data(SCHEMA_1)
    assert record.seconds.wall == pytest.approx(4.789443374999962)
    assert record.counts.teacher_images == 704
    assert record.coverage is not None
    assert record.coverage.float_layers == ["conv1: input", "linear: input"]
    assert record.preprocessing.card is not None
    assert record.preprocessing.card.std == [0.3762]
    assert record.diagnostics.layers[0].mean_gap == 0.1


def test_unknown_keys_are_kept_at_every_depth() -> None:
    data = copy.deepcopy(SCHEMA_1) | {"from_the_future": {"x": [1]}}
    data["seconds"]["transfer"] = 1.5
    data["diagnostics"]["layers"][0]["rank"] = 3
    record = Record.from_json(json.dumps(data).encode())
    record.flags = ["seen"]
    assert record.as_dict() == data | {"flags": ["seen"]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("flags", "x"),
        ("flags", ["kept", 3]),
        ("diagnostics", 3),
        ("curve", [{"step": 1, "top1": 50.0}, None]),
        ("top5", float("nan")),
        ("coverage", {"macs_total": "many"}),
        ("label", None),
    ],
)
def test_value_of_another_type_reads_as_missing_and_is_kept(key: str, value: Any) -> None:
    data = SCHEMA_1 | {key: value}
    record = Record.from_json(json.dumps(data).encode())
    assert record.top1 == data["top1"]
    assert json.dumps(record.as_dict(), sort_keys=True) == json.dumps(data, sort_keys=True)
    assert record.flags == (["kept"] if value == ["kept", 3] else [])
    assert record.coverage is None or record.coverage.macs_total in {747136, None}


def test_new_value_replaces_an_unreadable_one() -> None:
    record = Record.from_data(SCHEMA_1 | {"diagnostics": "broken", "flags": "x"})
    record.diagnostics = Diagnostics(version=1)
    assert record.as_dict()["diagnostics"] == {"version": 1}
    assert record.as_dict()["flags"] == "x"


def test_published_schema_is_up_to_date() -> None:
    assert PUBLISHED.read_text() == json_schema(), (
        "python -m dfqbench.run.store.record > docs/reference/record.schema.json"
    )


def test_csv_columns_are_in_the_schema() -> None:
    schema = json.loads(json_schema())
    for key in COLUMNS.values():
        place = schema
        for part in key.split("."):
            found = place["properties"][part]
            reference = found.get("$ref") or next((one["$ref"] for one in found.get("anyOf", ()) if "$ref" in one), "")
            place = schema["$defs"].get(reference.rpartition("/")[2], {})
