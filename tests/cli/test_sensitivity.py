from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.cli.calls import Call, refused

from dfqbench.diagnose import sensitivity
from dfqbench.quantizers.mixed_precision import LayerSensitivity

LAYERS = [
    LayerSensitivity("conv1", 144, 1000, {2: 0.1, 4: 0.01, 8: 0.0}),
    LayerSensitivity("fc", 6400, 3000, {2: 0.25, 4: 0.02, 8: 3e-5}),
]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Leave out the run that makes images; the plans that it would have had."""
    plans = []

    def measure(plan: Any, _plugins: Any, bits: list[int], **_: Any) -> list[LayerSensitivity]:
        plans.append((plan, bits))
        return list(LAYERS)

    monkeypatch.setattr(sensitivity, "measure_on_images", measure)
    return plans


def test_table_in_the_network_s_order_and_plot(call: Call, measured: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "layers.png"
    output = call("sensitivity", "resnet8", "--source", "gdfq", "--to", file)
    assert output.status == 0, output
    rows = [line.split() for line in output.out.splitlines()]
    assert ["conv1", "144", "25.0", "%", "0.1", "0.01", "0"] in rows
    assert rows[-1] == ["fc", "6,400", "75.0", "%", "0.25", "0.02", "3e-05"]
    assert file.read_bytes().startswith(b"\x89PNG")
    assert f"plot: {file}" in output.err
    ((plan, bits),) = measured
    (cell,) = plan.cells
    assert (cell.choice.label, cell.scheme.protocol.name, bits) == ("gdfq+calibrate", "gdfq", [2, 4, 8])
    assert (cell.dataset.name, cell.model_name) == ("digits", "digits:resnet8")


def test_most_sensitive_layer_first(call: Call, measured: list[Any], tmp_path: Path) -> None:
    output = call("sensitivity", "resnet8", "--sort", "--json", "--to", tmp_path / "layers.svg")
    assert [layer["name"] for layer in output.json] == ["fc", "conv1"]
    assert "fc" in (tmp_path / "layers.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nosuch",), "unknown model 'nosuch'"),
        (("resnet8", "--source", "zerq"), "unknown method 'zerq'; did you mean zeroq"),
        (("resnet8", "--source", "zeroq+distill"), "names a quantizer, and only images are needed; write zeroq"),
        (("resnet8", "--source", "none"), "the source 'none' has no images; name another one"),
        (("resnet8", "--source", "*"), "'*' is not a method choice"),
        (("resnet8", "--on", "nowhere"), "unknown target 'nowhere'"),
        (("resnet8", "--bits", "1"), "--bits: '1' is not a width of weights; write for example --bits 2,4,8"),
        (("resnet8", "--bits", "2,x"), "--bits: 'x' is not a width"),
        (("resnet8", "--bits", ""), "--bits: '' is not a width"),
        (("resnet8", "--protocol", "gdq"), "unknown protocol 'gdq'; did you mean gdfq"),
        (("resnet8", "--budget", "long"), "unknown budget 'long'"),
        (("resnet8", "--to", "plot.jpg"), "a plot is .png or .svg"),
        (("resnet8", "--to", "no/plot.png"), "its folder is missing"),
    ],
)
def test_wrong_requests(arguments: tuple[str, ...], message: str, call: Call) -> None:
    refused(call("sensitivity", *arguments), message)


@pytest.mark.slow
def test_images_are_made_once(call: Call, tmp_path: Path) -> None:
    arguments = ("sensitivity", "resnet8", "--source", "noise", "--budget", "smoke", "--out", tmp_path, "--json")
    first = call(*arguments).json
    assert [layer["name"] for layer in first][::7] == ["conv1", "linear"]
    assert all(layer["omega"]["2"] > layer["omega"]["4"] > layer["omega"]["8"] > 0 for layer in first)
    again = call(*arguments)
    assert again.json == first
    assert "1 finished before" in again.err
    assert len(list(tmp_path.glob("sensitivity/cells/*/attempt-*"))) == 1
    assert len(list(tmp_path.glob("sensitivity/*.png"))) == 1
