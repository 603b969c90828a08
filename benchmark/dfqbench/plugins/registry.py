"""The registry: what the loaded plugins offer, and the classes behind the names."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pluggy

from dfqbench.api.errors import DfqError, PluginError, unknown_name
from dfqbench.api.method import FileOffer, Method, Offer, Quantizer
from dfqbench.grid.choice import REAL
from dfqbench.grid.presets import preset_names
from dfqbench.isolation import PLUGIN_FAILURES, local_module_name, rollback_imports
from dfqbench.plugins.contract import checked_method, checked_quantizer
from dfqbench.plugins.offers import BrokenPlugin, LoadedFile, LoadedOffer, Origin, one_line

FAMILIES = ("torchvision", "timm", "pytorchcv", "cifar", "digits", "py")
"""Model families of the host; no plugin may take their names."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_LOAD = re.compile(r"[^\s:]+:[^\s:]+")


@dataclass(frozen=True, slots=True)
class Installed:
    """One plugin that loaded.

    Attributes:
        source: where it came from.
        manager: its own hook manager; None for the host's parts.
        offers: what it offers, by kind (`methods`, `quantizers`, `range_rules`, `models`, `targets`, ...).
    """

    source: Origin
    manager: pluggy.PluginManager | None
    offers: Mapping[str, tuple[Any, ...]]


class Plugins:
    """What the loaded plugins offer. Made by `load_plugins`.

    Attributes:
        files: the local plugin files; hand them to `load_plugins` in another process to get the same again.
        broken: plugins that did not load.
    """

    def __init__(self, files: tuple[Path, ...] = ()) -> None:
        self.files = files
        self.broken: list[BrokenPlugin] = []
        self._installed: list[Installed] = []
        self._offers: dict[str, dict[str, LoadedOffer]] = {
            "methods": {},
            "quantizers": {},
            "range_rules": {},
            "models": {},
        }
        self._files: dict[str, dict[str, LoadedFile]] = {"targets": {}, "grids": {}, "claims": {}}
        self._method_classes: dict[str, type[Method]] = {}
        self._quantizer_classes: dict[str, type[Quantizer]] = {}

    @property
    def methods(self) -> Mapping[str, LoadedOffer]:
        """Methods by name."""
        return MappingProxyType(self._offers["methods"])

    @property
    def quantizers(self) -> Mapping[str, LoadedOffer]:
        """Shared quantizers by name."""
        return MappingProxyType(self._offers["quantizers"])

    @property
    def range_rules(self) -> Mapping[str, LoadedOffer]:
        """Range rules by name."""
        return MappingProxyType(self._offers["range_rules"])

    @property
    def models(self) -> Mapping[str, LoadedOffer]:
        """Model families by name."""
        return MappingProxyType(self._offers["models"])

    @property
    def targets(self) -> Mapping[str, LoadedFile]:
        """Data folders by label."""
        return MappingProxyType(self._files["targets"])

    @property
    def grids(self) -> Mapping[str, LoadedFile]:
        """Grid files by name."""
        return MappingProxyType(self._files["grids"])

    @property
    def claims(self) -> Mapping[str, LoadedFile]:
        """Files of printed numbers by label."""
        return MappingProxyType(self._files["claims"])

    @property
    def broken_names(self) -> tuple[str, ...]:
        """Names of broken plugins that no loaded method has; asking for one gives the reason."""
        return tuple(dict.fromkeys(broken.name for broken in self.broken if broken.name not in self.methods))

    def install(self, plugin: Installed) -> None:
        """Adds everything that a plugin offers, or nothing.

        Raises:
            PluginError: a name is taken or malformed, or a path does not exist.
        """
        staged: dict[str, dict[str, LoadedOffer | LoadedFile]] = {}
        for kind, offers in plugin.offers.items():
            fresh = staged.setdefault(kind, {})
            for offer in offers:
                self._check_name(kind, offer.name, fresh)
                fresh[offer.name] = _loaded(kind, offer, plugin.source)
        for kind, fresh in staged.items():
            table: dict[str, Any] = self._offers[kind] if kind in self._offers else self._files[kind]
            table.update(fresh)
        self._installed.append(plugin)

    def _check_name(self, kind: str, name: object, fresh: Mapping[str, object]) -> None:
        what = kind.removesuffix("s").replace("_", " ")
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise PluginError(f"{what} name {name!r} is not valid", "use lower case letters, digits, '_' and '-'")
        owner = self._owner(kind, name) or ("the same plugin" if name in fresh else "")
        if owner:
            raise PluginError(f"{what} '{name}' is already offered by {owner}", "rename one of them")

    def _owner(self, kind: str, name: str) -> str:
        """Who has the name, or empty."""
        reserved = {"methods": (REAL,), "models": FAMILIES, "grids": preset_names()}.get(kind, ())
        if name in reserved:
            return "dfqbench"
        taken = (self._offers.get(kind) or self._files.get(kind) or {}).get(name)
        return f"{taken.origin} {taken.version}".rstrip() if taken else ""

    def method_class(self, name: str) -> type[Method]:
        """Imports the class of a method and checks that it keeps the contract.

        Raises:
            UsageError: no plugin offers the name.
            PluginError: the class does not load or breaks the contract, or the name is that of a broken plugin.
        """
        if name not in self._method_classes:
            offer = self._offer("method", name, self.methods)
            found = self._imported("method", offer)
            self._method_classes[name] = checked_method(found, offer, self.quantizers)
        return self._method_classes[name]

    def quantizer_class(self, name: str) -> type[Quantizer]:
        """Imports the class of a shared quantizer and checks that it keeps the contract.

        Raises:
            UsageError: nobody offers the name.
            PluginError: the class does not load or breaks the contract.
        """
        if name not in self._quantizer_classes:
            offer = self._offer("quantizer", name, self.quantizers)
            found = self._imported("quantizer", offer)
            self._quantizer_classes[name] = checked_quantizer(found, offer)
        return self._quantizer_classes[name]

    def _offer(self, kind: str, name: str, offers: Mapping[str, LoadedOffer]) -> LoadedOffer:
        if name in offers:
            return offers[name]
        for broken in self.broken:
            if broken.name == name:
                option = f" --plugin {broken.origin}" if broken.local else ""
                raise PluginError(
                    f"plugin '{name}' ({broken.origin}) did not load: {broken.message}",
                    f"repair or leave it out; `dfqbench methods show {name}{option}` prints its traceback",
                )
        raise unknown_name(kind, name, offers)

    def _imported(self, kind: str, offer: LoadedOffer) -> object:
        module, _, attribute = offer.load.partition(":")
        try:
            with rollback_imports(module.partition(".")[0]):
                found: object = importlib.import_module(module)
                for part in attribute.split("."):
                    found = getattr(found, part)
        except DfqError:
            raise
        except PLUGIN_FAILURES as error:
            where = f"{kind} '{offer.name}' ({offer.origin}): '{offer.load}' does not load: {one_line(error)}"
            raise PluginError(where, "fix the `load` string of the offer, or the module that it names") from error
        return found

    def record_finished(self, record: Mapping[str, Any]) -> list[BrokenPlugin]:
        """Tells every plugin that a cell has ended.

        Each gets a copy of its own and cannot stop the others.

        Returns:
            What failed, one entry a plugin.
        """
        failed = []
        for plugin in self._installed:
            if plugin.manager is None:
                continue
            try:
                with rollback_imports(""):
                    plugin.manager.hook.dfqbench_record_finished(record=copy.deepcopy(dict(record)))
            except PLUGIN_FAILURES as error:
                failed.append(BrokenPlugin.of(plugin.source, "record_finished", error))
        return failed


def _loaded(kind: str, offer: Offer | FileOffer, source: Origin) -> LoadedOffer | LoadedFile:
    if isinstance(offer, FileOffer):
        path = Path(offer.path)
        if not path.is_absolute() or not path.exists():
            raise PluginError(f"'{offer.name}': {offer.path} is not an absolute path that exists", "correct the offer")
        return LoadedFile(offer.name, path, source.origin, source.version)
    if not isinstance(offer.load, str) or _LOAD.fullmatch(offer.load) is None:
        raise PluginError(f"'{offer.name}': load {offer.load!r} is not valid", "write it as 'package.module:Class'")
    load = offer.load
    module, _, attribute = load.partition(":")
    if kind == "models" and source.path is not None and module == local_module_name(source.path):
        # Networks are also built in processes that load no plugins: those need the file.
        load = f"{source.path}:{attribute}"
    return LoadedOffer(offer.name, load, source.origin, source.version, source.path)
