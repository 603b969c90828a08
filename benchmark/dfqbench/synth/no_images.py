"""The source `none`: no images, for quantizers that need none; free of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from dfqbench.api import Batch, Fidelity, Method, Requires, SampleSource, Unavailable

if TYPE_CHECKING:
    from torch import nn

    from dfqbench.api.context import Context


class NoImages(Method):
    """No images: `none+squant` quantizes from the network alone."""

    name: ClassVar[str] = "none"
    title: ClassVar[str] = "No images"
    paper: ClassVar[str] = "a source of this benchmark"
    fidelity: ClassVar[Fidelity] = Fidelity.CONTROL
    requires: ClassVar[Requires] = Requires(batchnorm=False)

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:  # noqa: ARG002
        """Return a source without images."""
        return NoSource()


class NoSource:
    """A source of length 0."""

    def __len__(self) -> int:
        return 0

    def sample(self, size: int) -> Batch:  # noqa: ARG002 - the contract's signature
        """Refuse to draw.

        Raises:
            Unavailable: always.
        """
        raise Unavailable(
            "the source 'none' has no images, and this quantizer draws some",
            "cross it with a quantizer of weights alone (none+squant), or set calibrate.range=bn",
        )

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore nothing."""
