"""Fetch evaluation sets and weights; the only module that downloads anything."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfqbench.api.errors import DfqError, InputError, UsageError, unknown_name
from dfqbench.models.identity import file_sha256
from dfqbench.models.reference import Reference, parse_reference
from dfqbench.models.spec import ModelSpec
from dfqbench.targets.download import Progress, download, download_from_hub, mirrored
from dfqbench.targets.manifest import add_fetched_model, fetched_models
from dfqbench.targets.references import FETCHABLE

DATASETS = ("cifar10", "cifar100")
"""Evaluation sets that may be downloaded."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The outcome of one fetch.

    Attributes:
        name: the name of the data set or model.
        path: file or folder where it lies.
        sha256: hash of a weights file, or None for a data set (its files are compared with published MD5s).
        fresh: whether it was downloaded now; False: it was there already and its hash is right.
    """

    name: str
    path: Path
    sha256: str | None
    fresh: bool


def fetch(name: str, folder: Path, mirror: str | None = None, progress: Progress | None = None) -> Fetched:
    """Put a data set or a network's weights into a data folder.

    Everything is downloaded and checked in a hidden folder, then renamed, so that no incomplete file is left.

    Args:
        name: `cifar10`, `cifar100`, `torchvision:NAME`, `timm:NAME` or `pytorchcv:NAME`.
        folder: the data folder; made if it does not exist.
        mirror: scheme and host to download from instead.
        progress: called for every chunk.

    Raises:
        UsageError: the name is not known, or must not be downloaded.
        DfqError: the download failed or is corrupt.
        Unavailable: an optional library is not installed.
    """
    if name == "imagenet" or name.startswith("imagenet-"):
        raise UsageError(
            "ImageNet's licence allows no download without an account",
            "get ILSVRC2012 from image-net.org, put the images at DIR/val/<wnid>/*.JPEG and name --data DIR",
        )
    if name == "digits":
        raise UsageError("the digits come with dfqbench", "run: dfqbench run --on digits")
    fetchable = [f"{family}:NAME" for family in FETCHABLE]
    if name not in DATASETS and ":" not in name:
        raise unknown_name("data set or model to fetch", name, (*DATASETS, *fetchable))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if name in DATASETS:
            return _fetch_dataset(name, folder.absolute(), mirror, progress)
        reference = parse_reference(name)
        if reference.scheme not in FETCHABLE or reference.options:
            raise UsageError(f"'{name}' cannot be fetched", f"fetch {', '.join(fetchable)}")
        return _fetch_model(reference, folder.absolute(), mirror, progress)
    except OSError as error:
        raise DfqError(f"cannot write to {folder}: {error}", "name another folder with --data") from error


def _fetch_dataset(name: str, folder: Path, mirror: str | None, progress: Progress | None) -> Fetched:
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    reader: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    final = folder / reader.base_folder
    if all(check_integrity(str(final / file), md5) for file, md5 in [*reader.train_list, *reader.test_list]):
        return Fetched(name, final, None, fresh=False)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        scratch = Path(temporary)
        url = mirrored(reader.url, mirror)
        download(url, scratch / reader.filename, algorithm="md5", digest=reader.tgz_md5, progress=progress)
        try:
            # torchvision finds the archive, unpacks it and compares every file with its MD5.
            reader(str(scratch), train=False, download=True)
        except (RuntimeError, KeyError) as error:
            raise DfqError(f"{url} does not hold the files of {name}", "try again, or use --mirror") from error
        if final.exists():
            final.rename(scratch / "damaged")
        (scratch / reader.base_folder).rename(final)
    return Fetched(name, final, None, fresh=True)


def _fetch_model(reference: Reference, folder: Path, mirror: str | None, progress: Progress | None) -> Fetched:
    name = reference.bare
    for table in fetched_models(folder):
        file = folder / str(table.get("weights", ""))
        if table.get("name") == name and file.is_file() and file_sha256(file) == table.get("sha256"):
            return Fetched(name, file, str(table["sha256"]), fresh=False)

    from safetensors.torch import save_file

    from dfqbench.targets.pretrained import find_pretrained

    weights = find_pretrained(reference.scheme, reference.name, mirror)
    final = folder / "weights" / f"{reference.scheme}-{reference.name}.safetensors"
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        if weights.hub is not None:
            archive = download_from_hub(weights.hub)
        else:
            archive = Path(temporary, Path(weights.url.partition("?")[0]).name)
            download(weights.url, archive, digest=weights.digest, progress=progress)
        try:
            module = weights.load(archive)
        except InputError as error:
            # The file is the server's, not the user's.
            raise DfqError(f"{weights.url} is not usable: {error.message}", "try again, or use --mirror") from error
        part = Path(temporary, "weights.safetensors")
        state = {key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}
        save_file(state, part, {"source": name})
        part.chmod(0o644)
        sha256 = file_sha256(part)
        final.parent.mkdir(exist_ok=True)
        part.replace(final)
    card, top1 = weights.card, weights.top1
    add_fetched_model(folder, ModelSpec(weights.target, name, name, card, weights=final, top1=top1, sha256=sha256))
    return Fetched(name, final, sha256, fresh=True)
