"""ACQ's attention losses in the generator loop (methods.md 4; every constant inferred)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from dfqbench.api import Context, PluginError
from dfqbench.synth import (
    FunctionTerm,
    GeneratorPass,
    GeneratorSource,
    attention_consistency_loss,
    base_terms,
    centre_matching_loss,
    mode_seeking_loss,
    pair_similarity_loss,
    paired_centre_condition,
    pairs,
)

if TYPE_CHECKING:
    from dfqbench_methods.acq.plugin import AcqParams

CENTRE_SIZE = 2
"""Coordinates of an attention centre."""


def _centre(view: GeneratorPass) -> Tensor:
    if view.condition.extra is None:
        raise PluginError("the attention-centre loss needs a condition with centres")
    return centre_matching_loss(view.maps.attention[-1], view.condition.extra)


def _pair(view: GeneratorPass, cosine: bool) -> Tensor:
    if cosine:
        return pair_similarity_loss(*pairs(view.maps.penultimate))
    return mode_seeking_loss(*pairs(view.images), *pairs(view.condition.noise))


def _consistency(view: GeneratorPass) -> Tensor:
    if len(view.images) == 1:  # without batch statistics
        return view.images.sum() * 0
    return attention_consistency_loss(view.maps.attention, view.second_pass().attention)


def synthesize(teacher: nn.Module, ctx: Context, params: AcqParams) -> GeneratorSource:
    """Build GDFQ's generator, conditioned on attention centres, with batches of pairs.

    L_GDFQ + centre_weight L_ac + pair_weight L_pair + consistency_weight L_cons; L_cons compares the attention under
    the running and the batch's BatchNorm statistics.
    """
    cosine = params.pair_form == "cosine"
    losses = [
        *base_terms(ctx, params),
        FunctionTerm("centre", params.centre_weight, _centre, maps=True),
        FunctionTerm("pair", params.pair_weight, partial(_pair, cosine=cosine), maps=cosine),
        FunctionTerm("consistency", params.consistency_weight, _consistency, maps=True),
    ]
    draw = paired_centre_condition(params.latent, ctx.card.classes, params.centre_reach)
    return GeneratorSource(teacher, ctx, params, what="acq", losses=losses, draw=draw, extra=CENTRE_SIZE)
