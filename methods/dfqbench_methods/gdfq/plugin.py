"""GDFQ's offer to the host; free of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dfqbench.api import Context, Fidelity, Method, Offer, SampleSource, hookimpl
from dfqbench.synth import GeneratorParams

if TYPE_CHECKING:
    from torch import nn


class Gdfq(Method):
    """A generator x = G(z, y) learns L = ce_weight CE(P(x), y) + bns_weight L_BNS(x) (methods.md 2, released code).

    The teacher P shall answer the label y, and its BatchNorm inputs shall have the running statistics.
    """

    name = "gdfq"
    title = "GDFQ"
    paper = "Xu et al., Generative Low-bitwidth Data Free Quantization, ECCV 2020"
    link = "https://arxiv.org/abs/2003.03603"
    fidelity = Fidelity.RELEASED
    quantizer = "distill:gdfq"
    params_type = GeneratorParams
    params: GeneratorParams

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        """Build the generator; a live source that learns while the student does."""
        from dfqbench.synth import GeneratorSource, base_terms

        return GeneratorSource(teacher, ctx, self.params, what="gdfq", losses=base_terms(ctx, self.params))


@hookimpl
def dfqbench_methods() -> list[Offer]:
    """Offer GDFQ."""
    return [Offer("gdfq", "dfqbench_methods.gdfq.plugin:Gdfq")]
