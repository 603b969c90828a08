"""Plugins: found, loaded one by one, and checked against the contract; a broken one does not affect the others."""

from __future__ import annotations

from dfqbench.plugins.loader import load_plugins
from dfqbench.plugins.offers import BrokenPlugin, LoadedOffer
from dfqbench.plugins.registry import Plugins
from dfqbench.plugins.source import source_files, source_hash

__all__ = ["BrokenPlugin", "LoadedOffer", "Plugins", "load_plugins", "source_files", "source_hash"]
