from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import datasets

from dfqbench.api import DfqError, UsageError
from dfqbench.models.build import build_teacher
from dfqbench.models.spec import ModelSpec
from dfqbench.targets import pretrained
from dfqbench.targets.cards import DEFAULT_CARDS
from dfqbench.targets.catalogue import Catalogue
from dfqbench.targets.download import download, mirrored
from dfqbench.targets.evaluation import load_evaluation
from dfqbench.targets.fetch import fetch

if TYPE_CHECKING:
    from tests.targets.conftest import Server

SQUEEZENET = "/models/squeezenet1_1-b8a52dc0.pth"
CIFAR10 = "/~kriz/cifar-10-python.tar.gz"
TIMM = "test_resnet.r160_in1k"
NOWHERE = "http://127.0.0.1:9"


def saved(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return make().eval()


@pytest.fixture
def squeezenet(server: Server, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A network of torchvision with other weights, published on the local server under their own hash."""
    from torchvision.models import squeezenet1_1

    model = seeded(squeezenet1_1)
    content = saved(model.state_dict())
    server.files[SQUEEZENET] = content
    digest = hashlib.sha256(content).hexdigest()[:8]
    monkeypatch.setattr(pretrained, "_hash_in_name", lambda _: digest)
    return model


@pytest.fixture
def cifar10(server: Server, monkeypatch: pytest.MonkeyPatch) -> np.ndarray[Any, Any]:
    """A tiny archive in the form of CIFAR-10's; torchvision is patched to expect its hashes. Return the test images."""
    images = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    parts = {
        "data_batch_1": {"data": images[:10], "labels": list(range(10))},
        "test_batch": {"data": images[10:], "labels": list(range(10))},
        "batches.meta": {"label_names": [str(number) for number in range(10)]},
    }
    contents = {name: pickle.dumps(part) for name, part in parts.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    server.files[CIFAR10] = buffer.getvalue()
    hashes = {name: md5(content) for name, content in contents.items()}
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(buffer.getvalue()))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", hashes["data_batch_1"]]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", hashes["test_batch"]]])
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", hashes["batches.meta"])
    return images[10:].reshape(10, 3, 32, 32).transpose(0, 2, 3, 1)


def check_fetched(folder: Path, target: str, name: str, published: nn.Module) -> ModelSpec:
    (model,) = Catalogue.discover([folder]).models(target, [name])
    assert isinstance(model, ModelSpec)
    x = torch.rand(1, *model.card.input_size)
    assert torch.allclose(build_teacher(model)(x), published(x), atol=1e-5)
    return model


def left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_fetch_data_set(server: Server, cifar10: np.ndarray[Any, Any], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    done = fetch("cifar10", tmp_path / "new", server.url, lambda *step: seen.append(step))
    assert (done.fresh, done.path) == (True, tmp_path / "new" / "cifar-10-batches-py")
    assert seen[-1][1] == seen[-1][2] == len(server.files[CIFAR10])
    dataset = Catalogue.discover([tmp_path / "new"]).target("cifar10").dataset
    assert dataset is not None
    (raw,) = load_evaluation(dataset, DEFAULT_CARDS["cifar10"]).raw(10)
    assert np.array_equal(raw, cifar10)
    assert len(left(tmp_path)) == 3  # no archive, nothing hidden

    assert not fetch("cifar10", tmp_path / "new", server.url).fresh
    assert len(server.requests) == 1
    (done.path / "test_batch").write_bytes(b"damaged")
    assert fetch("cifar10", tmp_path / "new", server.url).fresh
    assert len(left(tmp_path)) == 3


@pytest.mark.usefixtures("cifar10")
def test_failed_download_of_a_data_set_leaves_nothing(server: Server, tmp_path: Path) -> None:
    def check(message: str, mirror: str = server.url) -> None:
        with pytest.raises(DfqError, match=message):
            fetch("cifar10", tmp_path, mirror)
        assert not list(tmp_path.iterdir())

    check(r"cannot download http://127.0.0.1:9/.*use --mirror", NOWHERE)
    server.short.add(CIFAR10)
    check(r"broke off after|cannot download")
    server.short.clear()
    server.files[CIFAR10] += b"x"
    check(r"has md5 .*: it is corrupt; try again, or use --mirror")
    server.files.clear()
    check("the server answers 404")


def test_fetch_torchvision_weights(server: Server, squeezenet: nn.Module, tmp_path: Path) -> None:
    name = "torchvision:squeezenet1_1"
    done = fetch(name, tmp_path, server.url)
    assert done.path == tmp_path / "weights" / "torchvision-squeezenet1_1.safetensors"
    model = check_fetched(tmp_path, "imagenet", "squeezenet1_1", squeezenet)
    assert (model.sha256, model.top1) == (done.sha256, 58.178)
    assert (model.card.input_size, model.card.mean) == ((3, 224, 224), (0.485, 0.456, 0.406))

    assert not fetch(name, tmp_path, server.url).fresh
    done.path.write_bytes(done.path.read_bytes() + b"x")
    with pytest.raises(UsageError, match="is not the file that was fetched; run: dfqbench fetch"):
        build_teacher(model)
    assert fetch(name, tmp_path, server.url).fresh
    assert len(server.requests) == 2
    assert (tmp_path / "fetched.toml").read_text().count("[[models]]") == 1


def test_corrupt_weights_and_code_are_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    server.files[SQUEEZENET] = saved({"state_dict": Evil()})
    with pytest.raises(DfqError, match=r"has sha256 .*, not b8a52dc0\.\.\.: it is corrupt"):
        fetch("torchvision:squeezenet1_1", tmp_path, server.url)
    monkeypatch.setattr(pretrained, "_hash_in_name", lambda _: None)
    with pytest.raises(DfqError, match=r"not usable: .*pickle"):
        fetch("torchvision:squeezenet1_1", tmp_path, server.url)
    assert left(tmp_path) == []


@pytest.fixture
def on_hub(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, str]:
    """A network of timm with other weights, published on the local server as on the hub; and its path there."""
    import timm
    from safetensors.torch import save

    model = seeded(lambda: timm.create_model("test_resnet"))
    path = f"/timm/{TIMM}/resolve/main/model.safetensors"
    server.files[path] = save(model.state_dict())
    server.tags[path] = hashlib.sha256(server.files[path]).hexdigest()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return model, path


def test_fetch_timm_weights(server: Server, on_hub: tuple[nn.Module, str], tmp_path: Path) -> None:
    network, path = on_hub
    data = tmp_path / "data"
    content = server.files[path]
    server.files[path] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(DfqError, match="it is corrupt; try again"):
        fetch(f"timm:{TIMM}", data, server.url)
    assert left(data) == []
    server.files[path] = content
    server.requests.clear()
    done = fetch(f"timm:{TIMM}", data, server.url)
    assert done.fresh
    assert check_fetched(data, "imagenet", f"timm:{TIMM}", network).sha256 == done.sha256

    assert not fetch(f"timm:{TIMM}", data, server.url).fresh
    fetch(f"timm:{TIMM}", tmp_path / "other", server.url)
    assert server.requests.count(f"GET {path}") == 1, "the hub's cache is not used"


def fetch_in_process(folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dfqbench", "fetch", f"timm:{TIMM}", "--data", str(folder / "data")]
    environment = os.environ | {"HF_HOME": str(folder / "home")} | more
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, env=environment)


def test_endpoint_and_token_of_the_hub_are_used(server: Server, on_hub: tuple[nn.Module, str], tmp_path: Path) -> None:
    done = fetch_in_process(tmp_path, **{"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_secret"})
    assert (done.returncode, done.stderr) == (0, "")
    assert f"timm:{TIMM}: fetched: {tmp_path}" in done.stdout
    assert server.tokens[on_hub[1]] == {"Bearer hf_secret"}


@pytest.mark.parametrize("fault", ["unreachable", "not on the hub"])
def test_hub_errors_are_one_line(server: Server, tmp_path: Path, fault: str) -> None:
    endpoint = NOWHERE if fault == "unreachable" else server.url
    done = fetch_in_process(tmp_path, HF_ENDPOINT=endpoint)
    assert done.returncode == 2
    assert done.stderr.startswith(f"dfqbench: error: cannot download {endpoint}/timm/{TIMM}/resolve/main/")
    assert done.stderr.endswith("; check the network, HF_ENDPOINT and HF_TOKEN, or use --mirror\n")
    assert done.stderr.count("\n") == 1
    assert left(tmp_path / "data") == []


def test_fetch_pytorchcv_weights(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = pytest.importorskip("pytorchcv.model_provider")
    from pytorchcv.models.common import model_store

    model = seeded(lambda: provider.get_model("resnet20_cifar10"))
    content = saved(model.state_dict())
    sha1 = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    published = {"resnet20_cifar10": (0, "0597", sha1, "v0.0.163")}
    monkeypatch.setattr(model_store, "get_model_metainfo_dict", lambda: published)
    file = f"resnet20_cifar10-0597-{sha1[:8]}.pth"

    def publish(content: bytes) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(file, content)
        server.files[f"/osmr/imgclsmob/releases/download/v0.0.163/{file}.zip"] = buffer.getvalue()

    publish(content)
    fetch("pytorchcv:resnet20_cifar10", tmp_path, server.url)
    fetched = check_fetched(tmp_path, "cifar10", "resnet20_cifar10", model)
    assert (fetched.top1, fetched.card.input_size) == (94.03, (3, 32, 32))
    assert fetched.card.std == (0.2023, 0.1994, 0.2010)  # that of its training, not CIFAR-10's own

    publish(content + b"x")
    with pytest.raises(DfqError, match="another SHA-1"):
        fetch("pytorchcv:resnet20_cifar10", tmp_path / "other", server.url)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("imagenet", "licence .*put the images at DIR/val/<wnid>"),
        ("digits", "come with dfqbench"),
        ("cifar11", "unknown data set or model to fetch 'cifar11'; did you mean cifar10"),
        ("cifar:resnet20", "cannot be fetched"),
        ("torchvision:resnet19", "unknown torchvision model 'resnet19'; did you mean .*resnet18"),
        ("timm:resnet10x", "unknown timm model 'resnet10x'"),
        ("timm:resnet18.fb", r"unknown weights of timm 'resnet18.fb'; .*resnet18.a1_in1k"),
        ("torchvision:resnet18?weights=random", "cannot be fetched"),
    ],
)
def test_names_that_cannot_be_fetched(tmp_path: Path, what: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fetch(what, tmp_path, NOWHERE)
    assert left(tmp_path) == []


def test_folder_that_cannot_be_written_or_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DfqError, match=r"cannot write to .*name another folder"):
        fetch("cifar10", tmp_path / "file", NOWHERE)
    (tmp_path / "fetched.toml").write_text("[[models")
    with pytest.raises(UsageError, match=r"fetched.toml is not valid TOML"):
        fetch("torchvision:squeezenet1_1", tmp_path, NOWHERE)


def test_mirror_replaces_scheme_and_host(tmp_path: Path) -> None:
    assert mirrored("https://a.org/b/c.pth?x=1", None) == "https://a.org/b/c.pth?x=1"
    assert mirrored("https://a.org/b/c.pth?x=1", "http://m:8/d/") == "http://m:8/d/b/c.pth?x=1"
    for wrong in ("m:8", "ftp://m", "/local"):
        with pytest.raises(UsageError, match="not the URL of a mirror"):
            mirrored("https://a.org/b", wrong)
    with pytest.raises(UsageError, match="not an http or https URL"):
        download("file:///etc/hostname", tmp_path / "x")
