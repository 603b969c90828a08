"""The catalogue: every target of the data folders, the plugins and the package itself."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dfqbench.api.card import InputStats
from dfqbench.api.errors import DfqError, InputError, unknown_name
from dfqbench.models.reference import is_reference
from dfqbench.models.spec import ModelSpec
from dfqbench.targets.cards import DEFAULT_CARDS, DOMAINS, in_domain
from dfqbench.targets.layouts import EXPECTED, recognised
from dfqbench.targets.manifest import FETCHED, MANIFEST, read_manifest
from dfqbench.targets.references import WELL_KNOWN, missing_reason, model_from_reference
from dfqbench.targets.spec import DatasetSpec, MissingModel, Target

WEIGHTS = Path(__file__).parent.parent / "models" / "weights"
DIGITS_WEIGHTS = WEIGHTS / "digits-resnet8.safetensors"
DIGITS_TOP1 = {"resnet8": 99.26, "mobilenet9": 99.44}
"""Percent of the 540 evaluation digits, measured by tools/train_digits.py on the weights in the wheel."""

_NO_DATA = {
    "imagenet": "put the validation images at DIR/val/<wnid>/*.JPEG and name --data DIR",
    "cifar10": "run: dfqbench fetch cifar10",
    "cifar100": "run: dfqbench fetch cifar100",
}


class _DataOffer(Protocol):
    """A data folder that a plugin brings along; `FileOffer` is one."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str | Path: ...


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
    problems: tuple[str, ...] = ()

    @classmethod
    def discover(
        cls, folders: Sequence[Path], offers: Iterable[_DataOffer] = (), families: Iterable[str] = ()
    ) -> Catalogue:
        """Read data folders.

        Args:
            folders: the user's data folders; the first that has an evaluation set of a name wins.
            offers: data folders that plugins bring along; a broken one is a problem, not an error.
            families: model families that plugins offer.

        Raises:
            InputError: a folder does not exist, holds nothing that is known, or has a broken manifest.
        """
        families = tuple(families)
        content = _Content.with_digits()
        for folder in folders:
            content.add_folder(folder, families)
        problems: list[str] = []
        for offer in offers:
            try:
                content.add_folder(Path(offer.path), families, confined=True)
            except DfqError as error:
                problems.append(f"data folder '{offer.name}' of a plugin: {error}")
        return cls(content.targets(), families, tuple(problems))

    def names(self) -> list[str]:
        """Return the names of all targets, complete or not."""
        return list(self.targets)

    def target(self, name: str) -> Target:
        """Return the target of that name.

        Raises:
            UsageError: there is none.
        """
        if name not in self.targets:
            raise unknown_name("target", name, self.targets)
        return self.targets[name]

    def domain(self, target: str) -> InputStats | None:
        """Return mean and deviation of a target's images, of pixels in [0, 1], or None if they are not known.

        They are those of its manifest, else the published ones, else those of the data set that it is a subset of.
        """
        for name in (target, self._parent(self.target(target))):
            dataset = self.targets[name].dataset if name in self.targets else None
            stats = DOMAINS.get(name) if dataset is None or dataset.stats is None else dataset.stats
            if stats is not None:
                return stats
        return None

    def models(self, target: str, names: Sequence[str] = ()) -> list[ModelSpec | MissingModel]:
        """Return models of a target.

        Args:
            target: name of the target.
            names: exact names, the part of a name after the colon, or full references; empty: all of the target's.

        Returns:
            Each model once, in the order of `names`, with the domain's statistics in its card; those that cannot be
            built here with the reason.

        Raises:
            UsageError: the target is not known, or a name is known to no target and is not a reference.
        """
        models = self._models_of(self.target(target))
        if names:
            matches = {model.name: model for name in names for model in self._match(target, models, name)}
            return [self._in_domain(target, model) for model in matches.values()]
        # A subset with networks of its own does not list what could be fetched for the whole set.
        hidden = WELL_KNOWN if target != "imagenet" and self.targets[target].models else ()
        shown = [model for model in models.values() if isinstance(model, ModelSpec) or model.name not in hidden]
        return [self._in_domain(target, model) for model in shown]

    def why_incomplete(self, target: str, names: Sequence[str] = ()) -> str:
        """Say why a target has no evaluation set, or none of the named models, in one line; empty if it has both."""
        if self.target(target).dataset is None:
            return self.target(target).missing
        models = self.models(target, names)
        reasons = [model.reason for model in models if isinstance(model, MissingModel)]
        if len(reasons) < len(models):
            return ""
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        return f"{reasons[0]}{more}" if reasons else f"target '{target}' has no models"

    def _in_domain(self, target: str, model: ModelSpec | MissingModel) -> ModelSpec | MissingModel:
        """Give a model's card the statistics of the target's domain."""
        domain = self.domain(target)
        if domain is None or isinstance(model, MissingModel):
            return model
        images, channels = len(domain.mean), model.card.input_size[0]
        if images != channels:
            return MissingModel(model.name, f"images of '{target}' have {images} channels, its input has {channels}")
        return dataclasses.replace(model, card=in_domain(model.card, domain))

    def _parent(self, target: Target) -> str:
        """Return the name of the data set that a target is a subset of, or an empty text."""
        return (target.dataset.subset_of if target.dataset is not None else None) or ""

    def _models_of(self, target: Target) -> dict[str, ModelSpec | MissingModel]:
        """Return the models of a target and of the data set that it is a subset of; available ones first."""
        parent = self._parent(target)
        inherited = self.targets[parent].models if parent in self.targets else ()
        models: list[ModelSpec | MissingModel] = [*target.models, *inherited, *target.unavailable]
        if "imagenet" in (target.name, parent):
            models += [MissingModel(name, missing_reason(name)) for name in WELL_KNOWN]
        unique: dict[str, ModelSpec | MissingModel] = {}
        for model in models:
            unique.setdefault(model.name, model)
        return unique

    def _match(
        self, target: str, models: Mapping[str, ModelSpec | MissingModel], text: str
    ) -> list[ModelSpec | MissingModel]:
        if text in models:
            return [models[text]]
        if short := [model for name, model in models.items() if name.partition(":")[2] == text]:
            return short
        if is_reference(text):
            return [model_from_reference(text, target, self.target(target).dataset, self.families)]
        owners = [
            name
            for name, owner in self.targets.items()
            if any(text in (model, model.partition(":")[2]) for model in self._models_of(owner))
        ]
        if owners:
            return [MissingModel(text, f"target '{target}' has no model '{text}'; {', '.join(owners)} has it")]
        raise unknown_name("model", text, models)


@dataclass(frozen=True, slots=True)
class _Content:
    """Content of data folders; the first declaration of a name wins. Models are listed by target and name."""

    datasets: dict[str, DatasetSpec]
    models: dict[tuple[str, str], ModelSpec]
    unavailable: dict[tuple[str, str], MissingModel]

    @classmethod
    def with_digits(cls) -> _Content:
        card = DEFAULT_CARDS["digits"]
        dataset = DatasetSpec("digits", "digits", None, None, card.classes, default_budget="tiny")
        models: dict[tuple[str, str], ModelSpec] = {}
        for name, top1 in DIGITS_TOP1.items():
            ref, weights = f"digits:{name}", WEIGHTS / f"digits-{name}.safetensors"
            models["digits", ref] = ModelSpec("digits", ref, ref, card, weights=weights, top1=top1, trusted=True)
        return cls({"digits": dataset}, models, {})

    def add_folder(self, folder: Path, families: tuple[str, ...], *, confined: bool = False) -> None:
        folder = folder.absolute()
        try:
            mode = folder.stat().st_mode
        except OSError as error:
            raise InputError(f"there is no data folder {folder}", f"name a folder with {EXPECTED}") from error
        if not stat.S_ISDIR(mode):
            raise InputError(f"{folder} is not a folder", "name the folder that it lies in")
        files = [folder / name for name in (MANIFEST, FETCHED)]
        manifests = [read_manifest(file, families, confined=confined) for file in files if file.is_file()]
        layouts = recognised(folder)
        if not manifests and not layouts:
            raise InputError(f"{folder} holds no data that dfqbench knows", f"it should have {EXPECTED}")
        for manifest in manifests:
            for model in manifest.models:
                self.models.setdefault((model.target, model.name), model)
            for target, missing in manifest.unavailable:
                self.unavailable.setdefault((target, missing.name), missing)
        for datasets in (*(manifest.datasets for manifest in manifests), layouts):
            for name, dataset in datasets.items():
                self.datasets.setdefault(name, dataset)

    def targets(self) -> dict[str, Target]:
        owners = [owner for owner, _ in (*self.models, *self.unavailable)]
        return {name: self._target(name) for name in (*DEFAULT_CARDS, *self.datasets, *owners)}

    def _target(self, name: str) -> Target:
        advice = _NO_DATA.get(name, "name a data folder that has it with --data DIR")
        if parts := [dataset.name for dataset in self.datasets.values() if dataset.subset_of == name]:
            advice = f"a part of it is here: --on {','.join(parts)}"
        return Target(
            name,
            self.datasets.get(name),
            tuple(model for (owner, _), model in self.models.items() if owner == name),
            "" if name in self.datasets else f"no evaluation set for '{name}'; {advice}",
            tuple(model for key, model in self.unavailable.items() if key[0] == name and key not in self.models),
        )
