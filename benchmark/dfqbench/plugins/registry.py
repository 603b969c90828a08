"""The registry: the offers of the loaded plugins, and the classes behind the names."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pluggy

from dfqbench.api.errors import DfqError, PluginError, unknown_name
from dfqbench.api.method import FileOffer, Method, Offer, Quantizer
from dfqbench.isolation import PLUGIN_FAILURES, kept_folder, local_module_name, rollback_imports
from dfqbench.plugins.contract import checked_method, checked_quantizer
from dfqbench.plugins.offers import BrokenPlugin, LoadedFile, LoadedOffer, Origin, one_line
from dfqbench.quant.range_rules import FROM_BATCHNORM

REAL = "real"
"""The host's own control: images of the target's training split."""
RESERVED = {
    "methods": (REAL,),
    "models": ("torchvision", "timm", "pytorchcv", "cifar", "digits", "py"),
    "range_rules": (FROM_BATCHNORM,),
}
"""Names of the host that are not offers; plugins may not use them."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_LOAD = re.compile(r"[^\s:]+:[^\s:]+")


class Plugins:
    """The offers of the host and of all loaded plugins; made by `load_plugins`.

    Attributes:
        files: the local plugin files; `load_plugins(files)` in another process gives the same plugins.
        broken: plugins that did not load.
        methods, quantizers, range_rules, models: offered classes and functions by name.
        targets, grids, claims: offered data folders, grid files and files of published numbers by name.
    """

    def __init__(self, files: tuple[Path, ...] = ()) -> None:
        self.files = files
        self.broken: list[BrokenPlugin] = []
        self.methods: dict[str, LoadedOffer] = {}
        self.quantizers: dict[str, LoadedOffer] = {}
        self.range_rules: dict[str, LoadedOffer] = {}
        self.models: dict[str, LoadedOffer] = {}
        self.targets: dict[str, LoadedFile] = {}
        self.grids: dict[str, LoadedFile] = {}
        self.claims: dict[str, LoadedFile] = {}
        self._managers: list[tuple[Origin, pluggy.PluginManager]] = []
        self._method_classes: dict[str, type[Method]] = {}
        self._quantizer_classes: dict[str, type[Quantizer]] = {}

    @property
    def broken_names(self) -> tuple[str, ...]:
        """Names of broken plugins, except those of loaded methods; `method_class` raises the reason for them."""
        return tuple(dict.fromkeys(broken.name for broken in self.broken if broken.name not in self.methods))

    @property
    def model_families(self) -> dict[str, str]:
        """`module:attribute` of every offered model family by name."""
        return {name: offer.load for name, offer in self.models.items()}

    def origins(self, method: str, quantizer: str, family: str, params: Mapping[str, Any]) -> set[str]:
        """Return the origins of the plugins whose code a cell runs.

        Args:
            method: its method's name.
            quantizer: its quantizer's name.
            family: family of its network.
            params: parameters of the quantizer; range rules are among their values.
        """
        used = [self.methods.get(method), self.quantizers.get(quantizer), self.models.get(family)]
        return {offer.origin for offer in (*used, *self.range_rules_in(params)) if offer is not None}

    def range_rules_in(self, params: Mapping[str, Any]) -> list[LoadedOffer]:
        """Return the range rules that parameters of a quantizer name."""
        names = {value.partition(":")[0] for value in params.values() if isinstance(value, str)}
        return [offer for name, offer in self.range_rules.items() if name in names]

    def install(
        self,
        source: Origin,
        offers: Mapping[str, Iterable[Offer | FileOffer]],
        manager: pluggy.PluginManager | None = None,
    ) -> None:
        """Add everything that a plugin offers, or nothing.

        Args:
            source: the plugin.
            offers: its offers by hook (`methods`, `quantizers`, `range_rules`, `models`, `targets`, ...).
            manager: the hook manager of this plugin; None for the host.

        Raises:
            PluginError: a name is taken or malformed, or a path does not exist.
        """
        staged: dict[str, dict[str, LoadedOffer | LoadedFile]] = {}
        for hook, hook_offers in offers.items():
            added = staged.setdefault(hook, {})
            for offer in hook_offers:
                self._check_name(hook, offer.name, added)
                added[offer.name] = _loaded(hook, offer, source)
        for hook, added in staged.items():
            getattr(self, hook).update(added)
        if manager is not None:
            self._managers.append((source, manager))

    def _check_name(self, hook: str, name: object, added: Mapping[str, object]) -> None:
        what = hook.removesuffix("s").replace("_", " ")
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise PluginError(f"{what} name {name!r} is not valid", "use lower case letters, digits, '_' and '-'")
        owner = "the same plugin" if name in added else ""
        if name in RESERVED.get(hook, ()):
            owner = "dfqbench"
        elsewhere = {"methods": self.quantizers, "quantizers": self.methods}.get(hook, {})
        if name in elsewhere:
            # `--set NAME.PARAM` and `methods show NAME` would mean both.
            offer = elsewhere[name]
            owner = f"{offer.origin} {offer.version}".rstrip() + f" ({'quantizer' if hook == 'methods' else 'method'})"
        if (taken := getattr(self, hook).get(name)) is not None:
            owner = f"{taken.origin} {taken.version}".rstrip()
        if owner:
            raise PluginError(f"{what} '{name}' is already offered by {owner}", "rename one of them")

    def method_class(self, name: str) -> type[Method]:
        """Import the class of a method and check that it keeps the contract.

        Raises:
            UsageError: no plugin offers the name.
            PluginError: the class does not load or breaks the contract, or the name is that of a broken plugin.
        """
        if name not in self._method_classes:
            offer = self._offer("method", name, self.methods)
            self._method_classes[name] = checked_method(_imported("method", offer), offer, self.quantizers)
        return self._method_classes[name]

    def quantizer_class(self, name: str) -> type[Quantizer]:
        """Import the class of a shared quantizer and check it, as `method_class` does."""
        if name not in self._quantizer_classes:
            offer = self._offer("quantizer", name, self.quantizers)
            self._quantizer_classes[name] = checked_quantizer(_imported("quantizer", offer), offer)
        return self._quantizer_classes[name]

    def _offer(self, what: str, name: str, offers: Mapping[str, LoadedOffer]) -> LoadedOffer:
        if name in offers:
            return offers[name]
        for broken in self.broken:
            if broken.name == name:
                option = f" --plugin {broken.origin}" if broken.local else ""
                raise PluginError(
                    f"plugin '{name}' ({broken.origin}) did not load: {broken.message}",
                    f"repair or leave it out; `dfqbench methods show {name}{option}` prints its traceback",
                )
        raise unknown_name(what, name, offers)

    def record_finished(self, record: Mapping[str, Any]) -> list[BrokenPlugin]:
        """Call every plugin's `dfqbench_record_finished` (`observe`)."""
        return self.observe("record_finished", record=dict(record))

    def observe(self, hook: str, **facts: object) -> list[BrokenPlugin]:
        """Call every plugin's `dfqbench_progress` or `dfqbench_record_finished`, each with its own copy of the facts.

        Returns:
            The failures; they do not stop the other plugins.
        """
        failed = []
        for source, manager in self._managers:
            call = getattr(manager.hook, f"dfqbench_{hook}")
            try:
                if call.get_hookimpls():
                    with kept_folder():
                        call(**copy.deepcopy(facts))
            except PLUGIN_FAILURES as error:
                failed.append(BrokenPlugin.of(source, hook, error))
        return failed


def _imported(what: str, offer: LoadedOffer) -> object:
    module, _, attributes = offer.load.partition(":")
    try:
        with rollback_imports(module.partition(".")[0]):
            imported: object = importlib.import_module(module)
            for attribute in attributes.split("."):
                imported = getattr(imported, attribute)
    except DfqError:
        raise
    except PLUGIN_FAILURES as error:
        where = f"{what} '{offer.name}' ({offer.origin}): '{offer.load}' does not load: {one_line(error)}"
        raise PluginError(where, "fix the `load` string of the offer, or the module that it names") from error
    return imported


def _loaded(hook: str, offer: Offer | FileOffer, source: Origin) -> LoadedOffer | LoadedFile:
    if isinstance(offer, FileOffer):
        path = Path(offer.path)
        if not path.is_absolute() or not path.exists():
            raise PluginError(f"'{offer.name}': {offer.path} is not an absolute path that exists", "correct the offer")
        return LoadedFile(offer.name, path, source.origin, source.version)
    module, _, attribute = str(offer.load).partition(":")
    local = source.path is not None and module in {"", source.path.stem, local_module_name(source.path)}
    if source.path is not None and local:
        module = local_module_name(source.path)
    if _LOAD.fullmatch(f"{module}:{attribute}") is None:
        raise PluginError(f"'{offer.name}': load {offer.load!r} is not valid", "write it as 'package.module:Class'")
    if local and hook == "models":
        # Networks are also built in processes that load no plugins: those need the file.
        module = str(source.path)
    return LoadedOffer(offer.name, f"{module}:{attribute}", source.origin, source.version, source.path)
