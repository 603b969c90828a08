"""Shared quantizers: procedures that turn a teacher and a source of images into a student."""

from dfqbench.api.method import Offer
from dfqbench.quantizers.calibrate import train_source

__all__ = ["BUILTIN", "train_source"]
BUILTIN: tuple[Offer, ...] = (
    Offer("calibrate", "dfqbench.quantizers.calibrate:Calibrate"),
    Offer("distill", "dfqbench.quantizers.distill:Distill"),
    Offer("squant", "dfqbench.quantizers.squant:SQuant"),
    Offer("dfq", "dfqbench.quantizers.dfq:Dfq"),
    Offer("rex", "dfqbench.quantizers.rex:Rex"),
    Offer("reconstruct", "dfqbench.quantizers.reconstruct:Reconstruct"),
)
"""The host's quantizers; plugins offer more."""
