"""Fixed sources: a set of images that a quantizer draws from, cyclically."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfqbench.api import Batch, PluginError


class FixedSource:
    """Images that no longer change, drawn in order and cyclically.

    Attributes:
        images: (N, C, H, W) in the teacher's normalised input space.
        labels: int64 (N,) or soft (N, classes), or None.
        teacher_logits: (N, classes), or None.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None, teacher_logits: Tensor | None = None) -> None:
        """Keep the images, without their graph.

        Args:
            images: (N, C, H, W), N > 0.
            labels: int64 (N,) or soft (N, classes); None: the teacher's argmax.
            teacher_logits: (N, classes), if already computed.

        Raises:
            PluginError: no images, or another number of labels or logits than images.
        """
        if images.ndim != 4 or len(images) == 0:
            raise PluginError(f"a source needs images of shape (N, C, H, W), got {tuple(images.shape)}")
        for what, tensor in (("labels", labels), ("teacher logits", teacher_logits)):
            if tensor is not None and len(tensor) != len(images):
                raise PluginError(f"a source has {len(images)} images but {len(tensor)} {what}")
        self.images = images.detach().contiguous(memory_format=torch.channels_last)
        self.labels = None if labels is None else labels.detach()
        self.teacher_logits = None if teacher_logits is None else teacher_logits.detach()
        self._cursor = 0

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, size: int) -> Batch:
        """Draw the next `size` images, starting over at the end of the set."""
        start = self._cursor
        self._cursor = (start + size) % len(self.images)
        index: slice | Tensor = slice(start, start + size)
        if start + size > len(self.images):
            index = torch.arange(start, start + size, device=self.images.device) % len(self.images)
        labels = None if self.labels is None else self.labels[index]
        logits = None if self.teacher_logits is None else self.teacher_logits[index]
        return Batch(self.images[index], labels, logits)

    def state_dict(self) -> dict[str, Any]:
        """Return images, labels, logits and the position of the next draw."""
        return {
            "images": self.images,
            "labels": self.labels,
            "teacher_logits": self.teacher_logits,
            "cursor": self._cursor,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, on the device of the present images."""
        device = self.images.device
        self.images = state["images"].to(device).contiguous(memory_format=torch.channels_last)
        self.labels = None if state["labels"] is None else state["labels"].to(device)
        self.teacher_logits = None if state["teacher_logits"] is None else state["teacher_logits"].to(device)
        self._cursor = int(state["cursor"])

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> FixedSource:
        """Build a source from what `state_dict` returned."""
        source = cls(state["images"])
        source.load_state_dict(state)
        return source
