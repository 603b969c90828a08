"""Builds the generator family's live source from a context and parameters: the one place where the parts meet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from dfqbench.api import Context
from dfqbench.synth.generators import Draw, Generator, class_condition
from dfqbench.synth.loop import GeneratorSource
from dfqbench.synth.params import GeneratorParams, TrainingPlan, is_large
from dfqbench.synth.terms import LossTerm, bns_term, cross_entropy_term, margin_term


def generator_plan(ctx: Context, params: GeneratorParams) -> TrainingPlan:
    """The generator's view of the training: it learns all along, so it knows no warm-up."""
    return TrainingPlan(ctx.budget, params.epochs, params.iterations, params.range_epochs, params.range_epochs)


def build_generator(ctx: Context, params: GeneratorParams, *, latent: int | None = None, extra: int = 0) -> Generator:
    """GDFQ's generator for the context's card, initialised from the cell's seed.

    Args:
        ctx: the host's side of the cell.
        params: architecture and statistics of the output.
        latent: size of the noise; None: as in `params`.
        extra: size of a further condition.
    """
    card = ctx.card
    embedding = not is_large(card.input_size) if params.architecture == "auto" else params.architecture == "cifar"
    with seeded(ctx.seed("generator weights")):
        generator = Generator(
            card.input_size,
            card.classes,
            latent=params.latent if latent is None else latent,
            embedding=embedding,
            extra=extra,
            stats=card.input_stats if params.input_target == "card" else None,
            sub_pixel=ctx.precision.rearranges,
        )
    return generator.to(ctx.device)


def base_terms(ctx: Context, params: GeneratorParams) -> list[LossTerm]:
    """Return GDFQ's losses CE and BNS, and the Gaussian margin, each with its weight from `params`."""
    return [cross_entropy_term(params.ce_weight), bns_term(params.bns_weight), family_margin_term(ctx, params)]


def family_margin_term(ctx: Context, params: GeneratorParams) -> LossTerm:
    """Return the Gaussian-margin term with its weight, start and form from `params`."""
    start = params.margin_start_large if is_large(ctx.card.input_size) else params.margin_start
    return margin_term(
        params.margin_weight,
        generator_plan(ctx, params).step_of(start),
        mean=params.margin_mean,
        std=params.margin_std,
        form=params.margin_form,
        distance=params.margin_distance,
    )


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
    """Build a live source with GDFQ's generator.

    Args:
        teacher: full-precision network.
        ctx: the host's side of the cell.
        params: the family's parameters.
        what: name of the method, for errors and seeds.
        losses: all losses of the generator; `base_terms` has GDFQ's.
        draw: makes conditions; None: noise and label.
        latent: size of the noise; None: as in `params`.
        extra: size of a further condition that `draw` makes.
    """
    size = params.latent if latent is None else latent
    return GeneratorSource(
        teacher,
        build_generator(ctx, params, latent=size, extra=extra),
        ctx,
        params,
        draw=draw or class_condition(size, ctx.card.classes),
        terms=losses,
        plan=generator_plan(ctx, params),
        what=what,
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it the global generators are seeded; afterwards they are as before.

    Args:
        seed: for the CPU's and, where one is at hand, the current CUDA device's generator.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
