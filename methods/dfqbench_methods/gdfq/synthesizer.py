"""GDFQ's losses on a conditional generator (methods.md 2; read in the released code of xushoukai/GDFQ)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from dfqbench.api import Context
from dfqbench.synth import GeneratorSource, bns_term, cross_entropy_term, family_margin_term, generator_source

if TYPE_CHECKING:
    from dfqbench_methods.gdfq.plugin import GdfqParams


def synthesize(teacher: nn.Module, ctx: Context, params: GdfqParams) -> GeneratorSource:
    """Build the generator x = G(z, y), which learns L = ce_weight CE(P(x), y) + bns_weight L_BNS(x).

    The teacher P shall answer the label y, and the inputs of its BatchNorm layers shall have their running statistics.
    """
    losses = [
        cross_entropy_term(params.ce_weight),
        bns_term(params.bns_weight),
        # Not GDFQ's own; its weight is 0 unless a user sets it.
        family_margin_term(ctx, params),
    ]
    return generator_source(teacher, ctx, params, what="gdfq", losses=losses)
