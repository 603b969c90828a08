"""Fetching evaluation sets and weights; the only place that downloads anything."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfqbench.api.errors import DfqError, InputError, UsageError, unknown_name
from dfqbench.models.identity import file_sha256
from dfqbench.models.reference import parse_reference
from dfqbench.models.spec import ModelSpec
from dfqbench.targets.download import Progress, download, mirrored
from dfqbench.targets.fetched import fetched_models, note_model
from dfqbench.targets.hub import download_from_hub
from dfqbench.targets.wanted import FETCHABLE

if TYPE_CHECKING:
    from dfqbench.targets.publication import Publication

DATASETS = ("cifar10", "cifar100")
"""Evaluation sets that may be downloaded."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The outcome of one fetch.

    Attributes:
        name: what was asked for.
        path: file or folder where it lies.
        sha256: hash of a weights file, or None for a data set (its files are compared with published MD5s).
        fresh: whether it was downloaded now; False: it was there already and its hash is right.
    """

    name: str
    path: Path
    sha256: str | None
    fresh: bool


def fetch(what: str, folder: Path, mirror: str | None = None, progress: Progress | None = None) -> Fetched:
    """Puts a data set or a network's weights into a data folder.

    Everything is downloaded and checked in a hidden folder, then renamed, so that nothing half-written is left.

    Args:
        what: `cifar10`, `cifar100`, `torchvision:NAME`, `timm:NAME` or `pytorchcv:NAME`.
        folder: the data folder; made if it is not there.
        mirror: scheme and host to download from instead.
        progress: told of every chunk.

    Raises:
        UsageError: it is not known, or must not be downloaded.
        DfqError: the download failed or is corrupt.
        Unavailable: an optional library is not installed.
    """
    if what == "imagenet" or what.startswith("imagenet-"):
        raise UsageError(
            "ImageNet's licence allows no download without an account",
            "get ILSVRC2012 from image-net.org, put the images at DIR/val/<wnid>/*.JPEG and name --data DIR",
        )
    if what == "digits":
        raise UsageError("the digits come with dfqbench", "run: dfqbench run --on digits")
    if what not in DATASETS and ":" not in what:
        raise unknown_name("data set or model to fetch", what, (*DATASETS, *(f"{name}:NAME" for name in FETCHABLE)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if what in DATASETS:
            return _fetch_dataset(what, folder.absolute(), mirror, progress)
        return _fetch_model(what, folder.absolute(), mirror, progress)
    except OSError as error:
        raise DfqError(f"cannot write to {folder}: {error}", "name another folder with --data") from error


def _fetch_dataset(name: str, folder: Path, mirror: str | None, progress: Progress | None) -> Fetched:
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    reader: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    final = folder / reader.base_folder
    if _intact(reader, folder):
        return Fetched(name, final, None, fresh=False)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        scratch = Path(temporary)
        archive = scratch / reader.filename
        url = mirrored(reader.url, mirror)
        download(url, archive, algorithm="md5", digest=reader.tgz_md5, progress=progress)
        try:
            # With an intact archive in place torchvision unpacks it and compares every file with its MD5.
            if check_integrity(str(archive), reader.tgz_md5):
                reader(str(scratch), train=False, download=True)
        except (RuntimeError, KeyError) as error:
            raise DfqError(f"{url} does not hold the files of {name}", "try again, or use --mirror") from error
        if final.exists():
            final.rename(scratch / "damaged")
        (scratch / reader.base_folder).rename(final)
    return Fetched(name, final, None, fresh=True)


def _intact(reader: Any, folder: Path) -> bool:
    from torchvision.datasets.utils import check_integrity

    files = [*reader.train_list, *reader.test_list]
    return all(check_integrity(str(folder / reader.base_folder / file), md5) for file, md5 in files)


def _fetch_model(what: str, folder: Path, mirror: str | None, progress: Progress | None) -> Fetched:
    reference = parse_reference(what)
    if reference.scheme not in FETCHABLE or reference.options:
        raise UsageError(f"'{what}' cannot be fetched", f"fetch {', '.join(f'{name}:NAME' for name in FETCHABLE)}")
    for table in fetched_models(folder):
        file = folder / str(table.get("weights", ""))
        if table.get("name") == what and file.is_file() and file_sha256(file) == table.get("sha256"):
            return Fetched(what, file, str(table["sha256"]), fresh=False)

    from dfqbench.targets.publication import find_publication

    found = find_publication(reference.scheme, reference.name, mirror)
    final = folder / "weights" / f"{reference.scheme}-{reference.name}.safetensors"
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        part = _converted(found, Path(temporary), progress)
        sha256 = file_sha256(part)
        final.parent.mkdir(exist_ok=True)
        part.replace(final)
    model = ModelSpec(found.target, what, what, found.card, weights=final, top1=found.top1, sha256=sha256)
    note_model(folder, model)
    return Fetched(what, final, sha256, fresh=True)


def _converted(found: Publication, scratch: Path, progress: Progress | None) -> Path:
    """Downloads published weights and writes them as safetensors under the names that the network has."""
    from safetensors.torch import save_file

    from dfqbench.targets.publication import load_published

    if found.hub is not None:
        archive = download_from_hub(found.hub)
    else:
        archive = scratch / Path(found.url.partition("?")[0]).name
        download(found.url, archive, digest=found.digest, progress=progress)
    try:
        module = load_published(found, archive)
    except InputError as error:
        # The file is the server's, not the user's.
        raise DfqError(f"{found.url} is not usable: {error.message}", "try again, or use --mirror") from error
    part = scratch / "weights.safetensors"
    state = {name: value.detach().clone().contiguous() for name, value in module.state_dict().items()}
    save_file(state, part, {"source": f"{found.library}:{found.name}"})
    part.chmod(0o644)
    return part
