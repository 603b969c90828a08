from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dfqbench.api import DfqError, Unavailable, UsageError
from dfqbench.cli import models


def invoke(*arguments: str) -> str:
    """Runs the verb as the command line does; errors of the user come out as they are raised."""
    app = typer.Typer()
    models.register(app)
    done = CliRunner().invoke(app, ["models", *arguments])
    if isinstance(done.exception, DfqError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_list_names_what_is_missing() -> None:
    rows = {row["name"]: row for row in json.loads(invoke("list", "--json"))}
    assert rows["digits:resnet8"]["status"] == "ok"
    assert rows["digits:resnet8"]["input"] == "1x8x8"
    assert Path(rows["digits:resnet8"]["weights"]).is_file()
    assert rows["torchvision:resnet18"]["status"] == "unavailable"
    text = invoke("list")
    assert "digits:resnet8" in text
    assert "dfqbench fetch torchvision:resnet18" in text
    assert "no evaluation set for 'cifar10'" in text


def test_list_of_a_data_folder(real_data: Path) -> None:
    rows = json.loads(invoke("list", "--json", "--data", str(real_data)))
    assert [(row["target"], row["top1"]) for row in rows if row["name"] == "cifar:resnet20"] == [("cifar10", 91.73)]


def test_show_builds_the_network() -> None:
    info = json.loads(invoke("show", "resnet8", "--json"))
    assert (info["params"], info["batchnorms"], info["classes"]) == (75_002, 7, 10)
    assert len(info["weights_sha256"]) == 64
    assert "75,002" in invoke("show", "digits:resnet8")


def test_show_takes_references() -> None:
    info = json.loads(invoke("show", "timm:test_resnet?weights=random", "--on", "cifar10", "--json"))
    assert (info["input_size"], info["classes"]) == ([3, 32, 32], 10)


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown model 'resnet9'; did you mean .*resnet8"):
        invoke("show", "resnet9")
    with pytest.raises(UsageError, match="unknown target 'cifar'"):
        invoke("show", "resnet8", "--on", "cifar")
    with pytest.raises(Unavailable, match="dfqbench fetch torchvision:resnet18"):
        invoke("show", "resnet18")
    with pytest.raises(UsageError, match="holds no data"):
        invoke("list", "--data", str(tmp_path))
