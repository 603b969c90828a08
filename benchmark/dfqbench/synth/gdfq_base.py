"""GDFQ's generator as a live source: the base of the methods that add losses or conditions to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dfqbench.api import Context
from dfqbench.synth.generators import Draw, Generator, class_condition
from dfqbench.synth.loop import GeneratorSource
from dfqbench.synth.params import GeneratorParams, is_large
from dfqbench.synth.terms import LossTerm, bns_term, cross_entropy_term, margin_term
from dfqbench.synth.training_schedule import generator_schedule


def base_terms(ctx: Context, params: GeneratorParams) -> list[LossTerm]:
    """Return GDFQ's losses, CE and BNS, and the Gaussian margin, with weights and constants from `params`."""
    start = params.margin_start_large if is_large(ctx.card.input_size) else params.margin_start
    margin = margin_term(
        params.margin_weight,
        generator_schedule(ctx, params).step_of(start),
        mean=params.margin_mean,
        std=params.margin_std,
        form=params.margin_form,
        distance=params.margin_distance,
    )
    return [cross_entropy_term(params.ce_weight), bns_term(params.bns_weight), margin]


def generator_source(
    teacher: nn.Module,
    ctx: Context,
    params: GeneratorParams,
    *,
    what: str,
    losses: Sequence[LossTerm],
    draw: Draw | None = None,
    latent: int | None = None,
    extra: int = 0,
) -> GeneratorSource:
    """Build a live source with GDFQ's generator, initialised from the cell's seed.

    Args:
        teacher: full-precision network.
        ctx: the host's side of the cell.
        params: architecture, training and statistics of the output.
        what: name of the method, for errors and seeds.
        losses: all losses of the generator, for example those of `base_terms`.
        draw: makes conditions; None: noise and label.
        latent: size of the noise; None: as in `params`.
        extra: size of a further condition that `draw` makes.
    """
    card, latent = ctx.card, params.latent if latent is None else latent
    embedding = not is_large(card.input_size) if params.architecture == "auto" else params.architecture == "cifar"
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(ctx.seed("generator weights"))
        generator = Generator(
            card.input_size,
            card.classes,
            latent=latent,
            embedding=embedding,
            extra=extra,
            stats=card.target_stats(params.input_target),
            sub_pixel=ctx.precision.rearranges,
        )
    draw = draw or class_condition(latent, card.classes)
    return GeneratorSource(teacher, generator.to(ctx.device), ctx, params, draw=draw, terms=losses, what=what)
