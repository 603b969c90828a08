"""A method that peeks at real data: its record must be invalid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqbench.api import Context, Fidelity, Method, Offer, Requires, SampleSource, hookimpl

if TYPE_CHECKING:
    from torch import nn


class OpensData(Method):
    """Calibrates on scikit-learn's digits, which the evaluation uses."""

    name = "opens-data"
    title = "Peeks"
    paper = "none"
    fidelity = Fidelity.RECONSTRUCTION
    requires = Requires(batchnorm=False)

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        import torch
        from sklearn.datasets import load_digits

        from dfqbench.synth.source import FixedSource

        images = torch.tensor(load_digits().images[:64], dtype=torch.float32)
        return FixedSource(images[:, None] / 16)


@hookimpl
def dfqbench_methods() -> list[Offer]:
    return [Offer("opens-data", ":OpensData")]
