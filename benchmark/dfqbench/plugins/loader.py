"""Loading of plugins one by one: one that fails is recorded and undone, and does not affect the others.

pluggy's own `load_setuptools_entrypoints` stops at the first plugin that raises, and in a shared manager one plugin's
exception ends a hook call for all. So every plugin gets its own manager, which is dropped if the plugin fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from dfqbench import __version__, hookspecs, quantizers
from dfqbench.api.errors import InputError, PluginError
from dfqbench.api.method import API_VERSION, PROJECT, FileOffer, Offer
from dfqbench.isolation import PLUGIN_FAILURES, import_local, local_module_name, rollback_imports
from dfqbench.plugins.offers import BrokenPlugin, Origin
from dfqbench.plugins.registry import Plugins
from dfqbench.quant.range_rules import BUILTIN as BUILTIN_RANGE_RULES
from dfqbench.quant.range_rules import set_range_rules

OFFER_TYPES: dict[str, type[Offer | FileOffer]] = {
    **dict.fromkeys(("methods", "quantizers", "range_rules", "models"), Offer),
    **dict.fromkeys(("targets", "grids", "claims"), FileOffer),
}
"""What each offering hook (`dfqbench_` + key) returns."""

HOST = Origin("dfqbench", "dfqbench", __version__)
METHODS = (Offer("none", "dfqbench.synth.no_images:NoImages"),)
"""The host's own method: the source without images."""
PRESETS = Path(__file__).parents[1] / "grid" / "presets"
"""Folder of the host's own grids."""


def load_plugins(
    files: Sequence[Path] = (), around: Callable[[str], AbstractContextManager[object]] = nullcontext
) -> Plugins:
    """Load the host's own offers, every installed plugin, and local plugin files.

    A local file may write the `load` string of an offer as `:Class` or `file_stem:Class`; both mean the file itself.

    Args:
        files: local plugin files, loaded after the installed plugins; the same file twice counts once.
        around: returns what is entered around the import of a plugin, whose origin it is called with.

    Returns:
        Their offers; plugins that did not load are in `.broken`.

    Raises:
        InputError: a local file does not exist or is not a Python file.
    """
    paths = tuple(dict.fromkeys(_checked_file(Path(file)) for file in files))
    plugins = Plugins(files=paths)
    grids = [FileOffer(file.stem, str(file)) for file in sorted(PRESETS.glob("*.toml"))]
    own: dict[str, Sequence[Offer | FileOffer]] = {
        "methods": METHODS,
        "quantizers": quantizers.BUILTIN,
        "range_rules": BUILTIN_RANGE_RULES,
        "grids": grids,
    }
    plugins.install(HOST, own)
    for source, package, load in _installed():
        with around(source.origin):
            _load(source, package, load, plugins)
    for path in paths:
        source = Origin(path.stem, str(path), "", path)
        with around(source.origin):
            _load(source, local_module_name(path), partial(import_local, path), plugins)
    set_range_rules({name: offer.load for name, offer in plugins.range_rules.items()})
    return plugins


def _checked_file(path: Path) -> Path:
    try:
        resolved = path.expanduser().resolve()
        problem = "" if resolved.is_file() else "is not a file" if resolved.exists() else "does not exist"
    except (OSError, RuntimeError) as error:
        raise InputError(f"plugin file {path} cannot be used: {error}", "give the path of a Python file") from error
    if problem or resolved.suffix != ".py":
        problem = problem or "is not a .py file"
        raise InputError(f"plugin file {path} {problem}", "give the path of a Python file to --plugin")
    return resolved


def _installed() -> Iterator[tuple[Origin, str, Callable[[], object]]]:
    """Yield the entry points, each with its top-level package and its import function."""

    def origin(point: EntryPoint) -> Origin:
        distribution = (point.dist.name, point.dist.version) if point.dist else (point.module, "")
        return Origin(point.name, *distribution)

    points = [(origin(point), point) for point in entry_points(group=hookspecs.ENTRY_POINTS)]
    # The project's own come first, so that no other plugin can take the name of a built-in method.
    points.sort(key=lambda pair: (pair[0].origin != HOST.origin, pair[0].origin, pair[0].version, pair[0].name))
    for source, point in points:
        yield source, point.module.partition(".")[0], point.load


def _load(source: Origin, package: str, load: Callable[[], object], plugins: Plugins) -> None:
    """Import a plugin and install its offers, or add it to the broken plugins."""
    stage = "import"
    try:
        with rollback_imports(package):
            plugin = _imported(load, source)
            stage = "register"
            manager = _registered(plugin, source)
            stage = "offer"
            offers = {hook: tuple(_offers(manager, hook)) for hook in OFFER_TYPES}
            stage = "api"
            _check_api(offers, source)
            stage = "name"
            plugins.install(source, offers, manager)
    except PLUGIN_FAILURES as error:
        plugins.broken.append(BrokenPlugin.of(source, stage, error))


def _imported(load: Callable[[], object], source: Origin) -> object:
    try:
        return load()
    except ImportError as error:
        # A plugin for another version often fails here, before its offers name that version.
        if str(error.name or "").partition(".")[0] != PROJECT:
            raise
        raise PluginError(
            f"it asks dfqbench for what it does not have: {error.msg}; "
            f"dfqbench {__version__} has version {API_VERSION} of the plugin interface",
            f"upgrade whichever is older, dfqbench or {source.origin}",
        ) from error


def _registered(plugin: object, source: Origin) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, name=str(source))
    # A misspelt hook would never be called.
    manager.check_pending()
    if not manager.get_hookcallers(plugin):
        raise PluginError("it has no hooks", "mark a function such as `dfqbench_methods` with `@dfqbench.api.hookimpl`")
    return manager


def _offers(manager: pluggy.PluginManager, hook: str) -> Iterator[Any]:
    offer_type = OFFER_TYPES[hook]
    hint = f"return a list of {offer_type.__name__}"
    for answer in getattr(manager.hook, f"dfqbench_{hook}")():
        if isinstance(answer, str) or not isinstance(answer, Iterable):
            raise PluginError(f"hook dfqbench_{hook} returned {type(answer).__name__}", hint)
        for offer in answer:
            if not isinstance(offer, offer_type):
                text = repr(offer)
                raise PluginError(
                    f"hook dfqbench_{hook} offered {text if len(text) <= 60 else f'{text[:57]}...'}", hint
                )
            yield offer


def _check_api(offers: dict[str, tuple[Any, ...]], source: Origin) -> None:
    for hook, hook_offers in offers.items():
        for offer in hook_offers:
            if offer.api == API_VERSION:
                continue
            what = f"{hook.removesuffix('s')} '{offer.name}' is for version {offer.api} of the plugin interface"
            newer = isinstance(offer.api, int) and offer.api > API_VERSION
            hint = "upgrade dfqbench" if newer else f"upgrade {source.origin}, or port it and set api={API_VERSION}"
            raise PluginError(f"{what}, and dfqbench {__version__} has version {API_VERSION}", hint)
