"""The catalogue: every target that the data folders, the plugins and the package itself have to offer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dfqbench.api.errors import DfqError, InputError, unknown_name
from dfqbench.models.reference import is_reference
from dfqbench.models.spec import ModelSpec
from dfqbench.targets.domain import DOMAINS, make_card
from dfqbench.targets.layouts import EXPECTED, recognised
from dfqbench.targets.manifest import FETCHED, MANIFEST, Manifest, read_manifest
from dfqbench.targets.spec import DatasetSpec, MissingModel, Target
from dfqbench.targets.wanted import WELL_KNOWN, missing_reason, requested_model

DIGITS_WEIGHTS = Path(__file__).parent.parent / "models" / "weights" / "digits-resnet8.safetensors"
DIGITS_TOP1 = 99.26
"""Percent of the 540 evaluation digits, measured by tools/train_digits.py on the weights in the wheel."""

_NO_DATA = {
    "imagenet": "put the validation images at DIR/val/<wnid>/*.JPEG and name --data DIR",
    "cifar10": "run: dfqbench fetch cifar10",
    "cifar100": "run: dfqbench fetch cifar100",
}


class DataOffer(Protocol):
    """A data folder that a plugin brings along; `FileOffer` is one."""

    @property
    def name(self) -> str:
        """Any label."""
        ...

    @property
    def path(self) -> str | Path:
        """Absolute path of the folder."""
        ...


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Targets by name.

    Attributes:
        targets: every target, complete or not.
        families: model families that plugins offer.
        problems: data folders of plugins that could not be read, one line each.
    """

    targets: Mapping[str, Target]
    families: tuple[str, ...] = ()
    problems: tuple[str, ...] = field(default=())

    @classmethod
    def discover(
        cls, folders: Sequence[Path], offers: Iterable[DataOffer] = (), families: Iterable[str] = ()
    ) -> Catalogue:
        """Looks through data folders.

        Args:
            folders: the user's data folders; the first that has an evaluation set of a name wins.
            offers: data folders that plugins bring along; a broken one is a problem, not an error.
            families: model families that plugins offer.

        Raises:
            InputError: a folder does not exist, holds nothing that is known, or has a broken manifest.
        """
        families = tuple(families)
        shelf = _Shelf(families)
        shelf.add_digits()
        for folder in folders:
            shelf.add_folder(folder)
        problems: list[str] = []
        for offer in offers:
            try:
                shelf.add_folder(Path(offer.path))
            except DfqError as error:
                problems.append(f"data folder '{offer.name}' of a plugin: {error}")
        return cls(shelf.targets(), families, tuple(problems))

    def names(self) -> list[str]:
        """Names of all targets, complete or not."""
        return list(self.targets)

    def target(self, name: str) -> Target:
        """The target of that name.

        Raises:
            UsageError: there is none.
        """
        if name not in self.targets:
            raise unknown_name("target", name, self.targets)
        return self.targets[name]

    def models(self, target: str, wanted: Sequence[str] = ()) -> list[ModelSpec | MissingModel]:
        """The wanted models of a target, in the order wanted.

        Args:
            target: name of the target.
            wanted: exact names, the part of a name after the colon, or full references; empty: all of the target's.

        Returns:
            Each model once; those that cannot be built here with the reason.

        Raises:
            UsageError: the target is not known, or a name is known to no target and is not a reference.
        """
        found_target = self.target(target)
        offered = self._offered(found_target)
        if not wanted:
            # A subset with networks of its own does not list what could be fetched for the whole set.
            hidden = set(WELL_KNOWN) if target != "imagenet" and found_target.models else set()
            return [item for item in offered.values() if isinstance(item, ModelSpec) or item.name not in hidden]
        found = [item for text in wanted for item in self._match(target, offered, text)]
        return list({item.name: item for item in found}.values())

    def complete(self, target: str, wanted_models: Sequence[str] = ()) -> bool:
        """Whether the evaluation set and at least one of the wanted models are there."""
        return not self.why_incomplete(target, wanted_models)

    def why_incomplete(self, target: str, wanted_models: Sequence[str] = ()) -> str:
        """What is missing of a target, one line; empty if it is complete."""
        found = self.target(target)
        if found.dataset is None:
            return found.missing
        models = self.models(target, wanted_models)
        if any(isinstance(model, ModelSpec) for model in models):
            return ""
        reasons = [model.reason for model in models if isinstance(model, MissingModel)]
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        return f"{reasons[0]}{more}" if reasons else f"target '{target}' has no models"

    def _offered(self, target: Target) -> dict[str, ModelSpec | MissingModel]:
        """Models of a target and of the data set that it is a subset of; available ones first."""
        offered: dict[str, ModelSpec | MissingModel] = {model.name: model for model in target.models}
        parent = (target.dataset.subset_of if target.dataset is not None else None) or ""
        inherited = self.targets[parent].models if parent in self.targets else ()
        for model in inherited:
            offered.setdefault(model.name, model)
        for missing in target.unavailable:
            offered.setdefault(missing.name, missing)
        if "imagenet" in (target.name, parent):
            for name in WELL_KNOWN:
                offered.setdefault(name, MissingModel(name, missing_reason(name)))
        return offered

    def _match(
        self, target: str, offered: Mapping[str, ModelSpec | MissingModel], text: str
    ) -> list[ModelSpec | MissingModel]:
        if text in offered:
            return [offered[text]]
        short = [item for name, item in offered.items() if name.partition(":")[2] == text]
        if short:
            return short
        if is_reference(text):
            return [requested_model(text, target, self.target(target).dataset, self.families)]
        owners = [
            name
            for name, other in self.targets.items()
            if any(text in (model, model.partition(":")[2]) for model in self._offered(other))
        ]
        if owners:
            return [MissingModel(text, f"target '{target}' has no model '{text}'; {', '.join(owners)} has it")]
        raise unknown_name("model", text, offered)


class _Shelf:
    """Collects what the folders declare; the first declaration of a name wins."""

    def __init__(self, families: tuple[str, ...]) -> None:
        self._families = families
        self._datasets: dict[str, DatasetSpec] = {}
        self._models: dict[tuple[str, str], ModelSpec] = {}
        self._unavailable: dict[tuple[str, str], MissingModel] = {}

    def add_digits(self) -> None:
        dataset = DatasetSpec("digits", "digits", None, None, DOMAINS["digits"].classes, default_budget="short")
        self._datasets["digits"] = dataset
        name = "digits:resnet8"
        card = make_card(name, target="digits", dataset=dataset)
        if DIGITS_WEIGHTS.is_file():
            self._models["digits", name] = ModelSpec(
                "digits", name, name, card, weights=DIGITS_WEIGHTS, top1=DIGITS_TOP1, trusted=True
            )
        else:
            reason = f"the package lacks {DIGITS_WEIGHTS.name}; install dfqbench again"
            self._unavailable["digits", name] = MissingModel(name, reason)

    def add_folder(self, folder: Path) -> None:
        folder = folder.absolute()
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is not a folder", "name the folder that it lies in")
        if not folder.is_dir():
            raise InputError(f"there is no data folder {folder}", f"name a folder with {EXPECTED}")
        manifests = [
            read_manifest(folder / name, self._families) for name in (MANIFEST, FETCHED) if (folder / name).is_file()
        ]
        layouts = recognised(folder)
        if not manifests and not layouts:
            raise InputError(f"{folder} holds no data that dfqbench knows", f"it should have {EXPECTED}")
        for manifest in manifests:
            self._add_manifest(manifest)
        for name, dataset in layouts.items():
            self._datasets.setdefault(name, dataset)

    def _add_manifest(self, manifest: Manifest) -> None:
        for name, dataset in manifest.datasets.items():
            self._datasets.setdefault(name, dataset)
        for model in manifest.models:
            self._models.setdefault((model.target, model.name), model)
        for target, missing in manifest.unavailable:
            self._unavailable.setdefault((target, missing.name), missing)

    def targets(self) -> dict[str, Target]:
        owners = [owner for owner, _ in (*self._models, *self._unavailable)]
        names = dict.fromkeys((*DOMAINS, *self._datasets, *owners))
        return {name: self._target(name) for name in names}

    def _target(self, name: str) -> Target:
        dataset = self._datasets.get(name)
        models = tuple(model for (owner, _), model in self._models.items() if owner == name)
        have = {model.name for model in models}
        unavailable = tuple(
            item for (owner, _), item in self._unavailable.items() if owner == name and item.name not in have
        )
        missing = ""
        if dataset is None:
            advice = _NO_DATA.get(name, "name a data folder that has it with --data DIR")
            missing = f"no evaluation set for '{name}'; {advice}"
        return Target(name, dataset, models, missing, unavailable)
