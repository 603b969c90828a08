from __future__ import annotations

from pathlib import Path

from tests.cli.calls import Call


def test_list_names_missing_models_and_data(call: Call) -> None:
    rows = {row["name"]: row for row in call("models", "list", "--json").json}
    digits = rows["digits:resnet8"]
    assert (digits["status"], digits["input"], Path(digits["weights"]).is_file()) == ("ok", "1x8x8", True)
    assert rows["torchvision:resnet18"]["status"] == "unavailable"
    text = call("models", "list").out
    for part in ("digits:resnet8", "dfqbench fetch torchvision:resnet18", "no evaluation set for 'cifar10'"):
        assert part in text


def test_list_of_a_data_folder(call: Call, real_data: Path) -> None:
    rows = call("models", "list", "--json", "--data", real_data).json
    assert [(row["target"], row["top1"]) for row in rows if row["name"] == "cifar:resnet20"] == [("cifar10", 91.73)]


def test_show_builds_the_network_of_a_name_or_reference(call: Call) -> None:
    info = call("models", "show", "resnet8", "--json").json
    assert (info["params"], info["batchnorms"], info["classes"]) == (75_002, 7, 10)
    assert len(info["weights_sha256"]) == 64
    assert "75,002" in call("models", "show", "digits:resnet8").out
    info = call("models", "show", "timm:test_resnet?weights=random", "--on", "cifar10", "--json").json
    assert (info["input_size"], info["classes"]) == ([3, 32, 32], 10)


def test_show_of_an_unavailable_network(call: Call) -> None:
    output = call("models", "show", "resnet18")
    assert output.status == 1
    assert "dfqbench fetch torchvision:resnet18" in output.err
