"""The real-data control: the ceiling that no data-free method can use."""

from __future__ import annotations

from dataclasses import dataclass

from dfqbench.api.params import param

REAL_TITLE = "Real images (ceiling)"


@dataclass(frozen=True)
class RealParams:
    """Parameters of the real-data control. Its images are chosen by the host; plugins get no data."""

    images: int = param(
        1024,
        help="images drawn from the training split; those that equal an evaluation image are dropped",
        source="a choice of this benchmark: 16 calibration batches",
    )
