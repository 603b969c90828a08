"""Shared quantizers: procedures that turn a teacher and a source of images into a student, for every method alike."""

from dfqbench.api.method import Offer

BUILTIN: tuple[Offer, ...] = (
    Offer("calibrate", "dfqbench.quantizers.calibrate:Calibrate"),
    Offer("distill", "dfqbench.quantizers.distill:Distill"),
)
"""The quantizers that come with the host; plugins offer more."""

__all__ = ["BUILTIN"]
