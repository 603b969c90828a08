"""Plugins: found, loaded one by one, checked against the contract, and never able to stop one another."""

from __future__ import annotations

from dfqbench.plugins.loader import load_plugins
from dfqbench.plugins.offers import BrokenPlugin, LoadedFile, LoadedOffer
from dfqbench.plugins.registry import Plugins
from dfqbench.plugins.source import source_files, source_hash

__all__ = [
    "BrokenPlugin",
    "LoadedFile",
    "LoadedOffer",
    "Plugins",
    "load_plugins",
    "source_files",
    "source_hash",
]
