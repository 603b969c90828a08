"""Finds plugins and loads them one by one; one that fails is recorded and undone, and the others go on.

pluggy's own `load_setuptools_entrypoints` stops at the first plugin that raises, and its shared manager lets one
plugin's exception end a hook call for all. Here every plugin gets a manager of its own: a call reaches that plugin
only, and dropping the manager is the whole roll-back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from dfqbench import __version__, hookspecs, quantizers
from dfqbench.api.errors import InputError, PluginError
from dfqbench.api.method import API_VERSION, PROJECT, FileOffer, Offer
from dfqbench.isolation import PLUGIN_FAILURES, import_local, local_module_name, rollback_imports
from dfqbench.plugins.offers import BrokenPlugin, Origin
from dfqbench.plugins.registry import Installed, Plugins
from dfqbench.quant.range_rules import BUILTIN as BUILTIN_RANGE_RULES
from dfqbench.quant.range_rules import set_range_rules

OFFER_HOOKS = {
    "methods": Offer,
    "quantizers": Offer,
    "range_rules": Offer,
    "models": Offer,
    "targets": FileOffer,
    "grids": FileOffer,
    "claims": FileOffer,
}
"""What each offering hook (`dfqbench_` + key) returns."""

HOST = Origin("dfqbench", "dfqbench", __version__)


@dataclass(frozen=True, slots=True)
class _Candidate:
    source: Origin
    owner: str
    load: Callable[[], object]


def load_plugins(files: Sequence[Path] = ()) -> Plugins:
    """Loads the built-in quantizers, every installed plugin, and local plugin files.

    A local file may write the `load` string of an offer as `:Class` or `file_stem:Class`; both mean the file itself.

    Args:
        files: local plugin files, after the installed ones; the same file twice counts once.

    Returns:
        What they offer; plugins that did not load are in `.broken`.

    Raises:
        InputError: a local file does not exist or is not a Python file.
    """
    paths = tuple(dict.fromkeys(_checked_file(Path(file)) for file in files))
    plugins = Plugins(files=paths)
    plugins.install(Installed(HOST, None, {"quantizers": quantizers.BUILTIN, "range_rules": BUILTIN_RANGE_RULES}))
    for candidate in (*_installed_candidates(), *map(_local_candidate, paths)):
        broken = _load_one(candidate, plugins)
        if broken is not None:
            plugins.broken.append(broken)
    set_range_rules({name: offer.load for name, offer in plugins.range_rules.items()})
    return plugins


def _checked_file(path: Path) -> Path:
    resolved = path.expanduser().resolve()
    if not resolved.is_file():
        raise InputError(f"plugin file {path} does not exist", "give the path of a Python file to --plugin")
    if resolved.suffix != ".py":
        raise InputError(f"plugin file {path} is not a .py file", "give the path of a Python file to --plugin")
    return resolved


def _installed_candidates() -> Iterator[_Candidate]:
    found = [(_distribution(point), point) for point in entry_points(group=hookspecs.ENTRY_POINTS)]
    # The project's own come first, so that a stranger cannot take a built-in's name.
    for (name, version), point in sorted(found, key=lambda item: (item[0][0] != HOST.origin, item[0], item[1].name)):
        yield _Candidate(Origin(point.name, name, version), point.module.partition(".")[0], point.load)


def _distribution(point: EntryPoint) -> tuple[str, str]:
    if point.dist is None:
        return point.module, ""
    return point.dist.name, point.dist.version


def _local_candidate(path: Path) -> _Candidate:
    return _Candidate(Origin(path.stem, str(path), "", path), local_module_name(path), load=lambda: import_local(path))


def _load_one(candidate: _Candidate, plugins: Plugins) -> BrokenPlugin | None:
    stage = "import"
    try:
        with rollback_imports(candidate.owner):
            plugin = _imported(candidate)
            stage = "register"
            manager = _managed(plugin, candidate.source)
            stage = "offer"
            offers = {kind: tuple(_offers(manager, kind, candidate.source)) for kind in OFFER_HOOKS}
            stage = "api"
            _check_api(offers, candidate.source)
            stage = "name"
            plugins.install(Installed(candidate.source, manager, offers))
    except PLUGIN_FAILURES as error:
        return BrokenPlugin.of(candidate.source, stage, error)
    return None


def _imported(candidate: _Candidate) -> object:
    try:
        return candidate.load()
    except ImportError as error:
        # A plugin for another version often fails before it could say for which it is.
        if str(error.name or "").partition(".")[0] != PROJECT:
            raise
        raise PluginError(
            f"it asks dfqbench for what it does not have: {error.msg}; "
            f"dfqbench {__version__} has version {API_VERSION} of the plugin interface",
            f"upgrade whichever is older, dfqbench or {candidate.source.origin}",
        ) from error


def _managed(plugin: object, source: Origin) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, name=str(source))
    # A misspelt hook name is a hook that would never be called.
    manager.check_pending()
    if not manager.get_hookcallers(plugin):
        raise PluginError("it has no hooks", "mark a function such as `dfqbench_methods` with `@dfqbench.api.hookimpl`")
    return manager


def _offers(manager: pluggy.PluginManager, kind: str, source: Origin) -> Iterator[Any]:
    wanted = OFFER_HOOKS[kind]
    for answer in getattr(manager.hook, f"dfqbench_{kind}")():
        if isinstance(answer, str) or not isinstance(answer, Iterable):
            raise PluginError(
                f"hook dfqbench_{kind} returned {type(answer).__name__}", f"return a list of {wanted.__name__}"
            )
        for offer in answer:
            if not isinstance(offer, wanted):
                raise PluginError(
                    f"hook dfqbench_{kind} offered {_shown(offer)}", f"return a list of {wanted.__name__}"
                )
            yield _localised(offer, source) if isinstance(offer, Offer) else offer


def _localised(offer: Offer, source: Origin) -> Offer:
    """Points the `load` string of a local file's offer at the name under which the file was imported."""
    module, colon, attribute = str(offer.load).partition(":")
    if source.path is None or not colon or module not in {"", source.path.stem}:
        return offer
    return replace(offer, load=f"{local_module_name(source.path)}:{attribute}")


def _check_api(offers: dict[str, tuple[Any, ...]], source: Origin) -> None:
    for kind, kind_offers in offers.items():
        for offer in kind_offers:
            if offer.api == API_VERSION:
                continue
            what = f"{kind.removesuffix('s')} '{offer.name}' is for version {offer.api} of the plugin interface"
            newer = isinstance(offer.api, int) and offer.api > API_VERSION
            hint = "upgrade dfqbench" if newer else f"upgrade {source.origin}, or port it and set api={API_VERSION}"
            raise PluginError(f"{what}, and dfqbench {__version__} has version {API_VERSION}", hint)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
