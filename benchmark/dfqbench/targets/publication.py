"""Where the model libraries publish weights, and the card that goes with them."""

from __future__ import annotations

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
from dfqbench.targets.domain import DOMAINS
from dfqbench.targets.download import mirrored
from dfqbench.targets.hub import HubFile

TORCHVISION_WEIGHTS = "IMAGENET1K_V1"
"""The weights that papers start from (69.76 for ResNet-18); later ones were trained by another recipe."""
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


@dataclass(frozen=True, slots=True)
class Publication:
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
    top1: float | None
    digest: str | None
    hub: HubFile | None = None
    member: tuple[str, str] | None = None


def find_publication(library: str, name: str, mirror: str | None = None) -> Publication:
    """Looks a network up in its library.

    Args:
        library: `torchvision`, `timm` or `pytorchcv`.
        name: name in the library.
        mirror: scheme and host to use instead of the library's own.

    Raises:
        UsageError: the library has no such network, or no weights for one of the known targets.
        Unavailable: the library is not installed.
    """
    return {"torchvision": _torchvision, "timm": _timm, "pytorchcv": _pytorchcv}[library](name, mirror)


def load_published(found: Publication, file: Path) -> nn.Module:
    """Builds a network of a library and loads its downloaded weights, without running code from the file.

    Raises:
        DfqError: the file is not what the library published.
    """
    if found.library == "timm":
        import timm

        try:
            # timm itself knows how its older checkpoints are renamed; it reads them with weights_only=True.
            module: nn.Module = timm.create_model(
                found.name, pretrained=True, pretrained_cfg_overlay={"file": str(file), "hf_hub_id": None}
            )
        except Exception as error:  # whatever timm raises on a damaged file
            raise DfqError(f"{found.url} is not a checkpoint of {found.name}: {error}", "try again") from error
        return module
    module = library_builder(found.library, found.name)()
    load_weights(module, _unpacked(found, file))
    return module


def _unpacked(found: Publication, file: Path) -> Path:
    """The weights inside a downloaded archive; only the expected file is taken out of it."""
    if found.member is None:
        return file
    import hashlib

    name, sha1 = found.member
    inner = file.with_name(name)
    try:
        with zipfile.ZipFile(file) as archive:
            inner.write_bytes(archive.read(name))
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise DfqError(f"{found.url} is not the expected archive: {error}", "try again") from error
    if hashlib.sha1(inner.read_bytes(), usedforsecurity=False).hexdigest() != sha1:
        raise DfqError(f"{found.url} has another SHA-1 than {sha1[:12]}...: it is corrupt", "try again")
    return inner


def _torchvision(name: str, mirror: str | None) -> Publication:
    import torchvision

    library_builder("torchvision", name)
    versions = torchvision.models.get_model_weights(name)
    weights: Any = getattr(versions, TORCHVISION_WEIGHTS, None) or versions.DEFAULT
    transform = weights.transforms()
    card = ModelCard(
        (3, transform.crop_size[0], transform.crop_size[0]), tuple(transform.mean), tuple(transform.std), 1000
    )
    top1 = weights.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    return Publication(
        "torchvision", name, "imagenet", mirrored(weights.url, mirror), card, top1, _hash_in_name(weights.url)
    )


def _timm(name: str, mirror: str | None) -> Publication:
    import timm

    library_builder("timm", name)
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # how timm says that the part after the dot is unknown
        config = None
    if config is None or not config.has_weights:
        known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise unknown_name("weights of timm", name, known)
    if config.num_classes != DOMAINS["imagenet"].classes:
        raise UsageError(f"timm:{name} has {config.num_classes} classes, not ImageNet's 1,000", "fetch other weights")
    card = ModelCard(tuple(config.input_size), tuple(config.mean), tuple(config.std), config.num_classes)
    if not config.hf_hub_id:
        url = mirrored(config.url, mirror)
        return Publication("timm", name, "imagenet", url, card, None, _hash_in_name(config.url))
    repo, _, revision = config.hf_hub_id.partition("@")
    endpoint = None if mirror is None else mirrored("", mirror)
    hub = HubFile(repo, config.hf_hub_filename or "model.safetensors", revision or None, endpoint)
    return Publication("timm", name, "imagenet", hub.url, card, None, None, hub)


def _pytorchcv(name: str, mirror: str | None) -> Publication:
    network = library_builder("pytorchcv", name)()
    store = importlib.import_module("pytorchcv.models.common.model_store")
    published = store.get_model_metainfo_dict()
    if name not in published:
        raise unknown_name("pytorchcv model with weights", name, near_names(name, list(published)))
    _, error_value, sha1, release = published[name]
    suffix = name.rpartition("_")[2]
    target = suffix if suffix in ("cifar10", "cifar100") else "imagenet"
    domain = DOMAINS[target]
    if getattr(network, "num_classes", None) != domain.classes:
        raise UsageError(f"pytorchcv:{name} is for none of the targets", "fetch weights for ImageNet or CIFAR")
    height, width = network.in_size
    card = ModelCard((3, height, width), domain.mean, domain.std, domain.classes)
    file = f"{name}-{error_value}-{sha1[:8]}.pth"
    url = f"{store.imgclsmob_repo_url}/releases/download/{release}/{file}.zip"
    # The error in the name is top-1 for CIFAR (0597: 5.97 %), top-5 for ImageNet.
    top1 = None if target == "imagenet" else round(100 - int(error_value) / 100, 2)
    return Publication("pytorchcv", name, target, mirrored(url, mirror), card, top1, None, None, (file, sha1))


def _hash_in_name(url: str) -> str | None:
    """The start of the SHA-256 that torch's hub puts into file names."""
    match = _HASH_IN_NAME.search(urlsplit(url).path)
    return None if match is None else match.group(1)
