"""A Gaussian low-pass filter of images (SynQ)."""

from __future__ import annotations

import torch
from torch import Tensor


class LowPass:
    """Multiplies an image's spectrum by exp(-d^2 / (2 D0^2)), d the distance from frequency 0 in bins.

    The factor is a product of one along each side, so the filter is X -> A X B^T with constant A and B.
    """

    def __init__(self, size: tuple[int, int], cutoff: float, device: torch.device) -> None:
        """Compute A and B.

        Args:
            size: H and W.
            cutoff: D0, in bins.
            device: of the images.
        """
        self._rows, self._columns = (_filter(side, cutoff).to(device) for side in size)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the filtered images (N, C, H, W), channels-last."""
        filtered = self._rows @ images @ self._columns.T
        return filtered.contiguous(memory_format=torch.channels_last)


def _filter(side: int, cutoff: float) -> Tensor:
    """Return the filter of one side as a matrix (side, side)."""
    bins = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
    factors = torch.exp(-0.5 * (bins / cutoff).square())
    spectrum = torch.fft.fft(torch.eye(side, dtype=torch.float64), dim=0)
    matrix: Tensor = torch.fft.ifft(factors[:, None] * spectrum, dim=0).real
    return matrix.float()
