"""Pretrained weights: where the model libraries publish them, and the card that goes with them."""

from __future__ import annotations

import hashlib
import importlib
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import nn

from dfqbench.api.card import ModelCard
from dfqbench.api.errors import DfqError, UsageError, unknown_name
from dfqbench.models.build import library_builder, near_names
from dfqbench.models.weights import load_weights
from dfqbench.targets.cards import DEFAULT_CARDS
from dfqbench.targets.download import HubFile, mirrored

TORCHVISION_WEIGHTS = "IMAGENET1K_V1"
"""The weights that papers start from (69.76 for ResNet-18); later ones were trained by another recipe."""
_PYTORCHCV_CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
"""What pytorchcv's networks for CIFAR-10 and CIFAR-100 were trained with (its `cifar10_cls_dataset.py`)."""


@dataclass(frozen=True, slots=True)
class PretrainedWeights:
    """Published weights of one network.

    Attributes:
        library: `torchvision`, `timm` or `pytorchcv`.
        name: name in the library.
        target: target that they were trained for.
        url: where they are.
        card: input size, normalisation, classes.
        top1: published top-1 in percent, or None.
        digest: start of the file's hash, or None where none is published.
        hub: the file at `url` on the Hugging Face Hub, or None: an ordinary web server.
        member: file inside the archive at `url`, with its SHA-1, or None: no archive.
    """

    library: str
    name: str
    target: str
    url: str
    card: ModelCard
    top1: float | None = None
    digest: str | None = None
    hub: HubFile | None = None
    member: tuple[str, str] | None = None

    def load(self, file: Path) -> nn.Module:
        """Build the network and load the downloaded file, without running code from it.

        Raises:
            DfqError: the file is not what the library published.
        """
        if self.library == "timm":
            import timm

            # timm itself knows how its older checkpoints are renamed; it reads them with weights_only=True.
            overlay = {"file": str(file), "hf_hub_id": None}
            try:
                module: nn.Module = timm.create_model(self.name, pretrained=True, pretrained_cfg_overlay=overlay)
            except Exception as error:  # timm may raise anything on a damaged file
                raise DfqError(f"{self.url} is not a checkpoint of {self.name}: {error}", "try again") from error
            return module
        module = library_builder(self.library, self.name)()
        load_weights(module, file if self.member is None else self._extract(file, *self.member))
        return module

    def _extract(self, archive: Path, name: str, sha1: str) -> Path:
        file = archive.with_name(name)
        try:
            with zipfile.ZipFile(archive) as opened:
                file.write_bytes(opened.read(name))
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise DfqError(f"{self.url} is not the expected archive: {error}", "try again") from error
        if hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest() != sha1:
            raise DfqError(f"{self.url} has another SHA-1 than {sha1[:12]}...: it is corrupt", "try again")
        return file


def find_pretrained(library: str, name: str, mirror: str | None = None) -> PretrainedWeights:
    """Look up the weights of a network in its library.

    Args:
        library: `torchvision`, `timm` or `pytorchcv`.
        name: name in the library.
        mirror: scheme and host to use instead of the library's own.

    Raises:
        UsageError: the library has no such network, or no weights for one of the known targets.
        Unavailable: the library is not installed.
    """
    builder = library_builder(library, name)
    if library == "torchvision":
        return _torchvision(name, mirror)
    return _timm(name, mirror) if library == "timm" else _pytorchcv(name, builder(), mirror)


def _torchvision(name: str, mirror: str | None) -> PretrainedWeights:
    import torchvision

    versions = torchvision.models.get_model_weights(name)
    weights: Any = getattr(versions, TORCHVISION_WEIGHTS, None) or versions.DEFAULT
    transform = weights.transforms()
    size = transform.crop_size[0]
    card = ModelCard((3, size, size), tuple(transform.mean), tuple(transform.std), 1000)
    top1 = weights.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    url = mirrored(weights.url, mirror)
    return PretrainedWeights("torchvision", name, "imagenet", url, card, top1, _hash_in_name(weights.url))


def _timm(name: str, mirror: str | None) -> PretrainedWeights:
    import timm

    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # the part after the dot is unknown
        config = None
    if config is None or not config.has_weights:
        raise unknown_name("weights of timm", name, timm.list_pretrained(f"{name.partition('.')[0]}.*"))
    if config.num_classes != DEFAULT_CARDS["imagenet"].classes:
        raise UsageError(f"timm:{name} has {config.num_classes} classes, not ImageNet's 1,000", "fetch other weights")
    card = ModelCard(tuple(config.input_size), tuple(config.mean), tuple(config.std), config.num_classes)
    if not config.hf_hub_id:
        url = mirrored(config.url, mirror)
        return PretrainedWeights("timm", name, "imagenet", url, card, digest=_hash_in_name(config.url))
    repo, _, revision = config.hf_hub_id.partition("@")
    endpoint = None if mirror is None else mirrored("", mirror)
    hub = HubFile(repo, config.hf_hub_filename or "model.safetensors", revision or None, endpoint)
    return PretrainedWeights("timm", name, "imagenet", hub.url, card, hub=hub)


def _pytorchcv(name: str, network: Any, mirror: str | None) -> PretrainedWeights:
    store = importlib.import_module("pytorchcv.models.common.model_store")
    published = store.get_model_metainfo_dict()
    if name not in published:
        raise unknown_name("pytorchcv model with weights", name, near_names(name, list(published)))
    _, error_value, sha1, release = published[name]
    suffix = name.rpartition("_")[2]
    target = suffix if suffix in ("cifar10", "cifar100") else "imagenet"
    default = DEFAULT_CARDS[target]
    if getattr(network, "num_classes", None) != default.classes:
        raise UsageError(f"pytorchcv:{name} is for none of the targets", "fetch weights for ImageNet or CIFAR")
    mean, std = (default.mean, default.std) if target == "imagenet" else _PYTORCHCV_CIFAR
    card = ModelCard((3, *network.in_size), mean, std, default.classes)
    file = f"{name}-{error_value}-{sha1[:8]}.pth"
    url = mirrored(f"{store.imgclsmob_repo_url}/releases/download/{release}/{file}.zip", mirror)
    # The error in the name is top-1 for CIFAR (0597: 5.97 %), top-5 for ImageNet.
    top1 = None if target == "imagenet" else round(100 - int(error_value) / 100, 2)
    return PretrainedWeights("pytorchcv", name, target, url, card, top1, member=(file, sha1))


def _hash_in_name(url: str) -> str | None:
    """Return the start of the SHA-256 that torch's hub puts into file names."""
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", urlsplit(url).path)
    return None if match is None else match.group(1)
