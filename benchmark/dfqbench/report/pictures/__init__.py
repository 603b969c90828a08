"""Pictures: synthetic images in display space, by class, with the teacher's confidence; needs no torch."""

from __future__ import annotations

from dfqbench.report.pictures.choose import Picture, pictures

__all__ = ["Picture", "pictures"]
