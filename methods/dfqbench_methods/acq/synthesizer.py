"""ACQ's condition and attention losses in the generator loop (methods.md 4; every constant inferred)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dfqbench.api import Context, PluginError
from dfqbench.synth import (
    FunctionTerm,
    GeneratorPass,
    GeneratorSource,
    LossTerm,
    RunningMoments,
    attention_centre,
    attention_consistency_loss,
    base_terms,
    bns_loss,
    centre_matching_loss,
    generator_schedule,
    is_large,
    pair_similarity_loss,
    paired_condition,
    pairs,
)

if TYPE_CHECKING:
    from dfqbench_methods.acq.plugin import AcqParams

CENTRE_SIZE = 2
"""Coordinates of an attention centre."""


class CentreTerm(LossTerm):
    """L_ac, and the distribution of the attention centres c that it asks for.

    Before the loss starts: c ~ U(-.3, .3)^2. Afterwards: c = m + 1.5 s u, u ~ N(0, I), clamped to +-.7, with running
    mean m and deviation s of the centres in the generator's images. Both are in reach of the teacher's attention
    (methods.md 4, inferred).
    """

    needs_maps = True
    capturable = True

    def __init__(self, params: AcqParams, start: int, device: torch.device) -> None:
        super().__init__("centre", params.centre_weight, start)
        self._params = params
        self._own = RunningMoments((CENTRE_SIZE,), params.centre_decay, device)
        self._follows = False

    def draw_centres(self, size: int, random: torch.Generator) -> Tensor:
        """Draw centres (size, 2), in half image sides."""
        params, shape = self._params, (size, CENTRE_SIZE)
        if not self._follows:
            return (torch.rand(shape, generator=random, device=random.device) * 2 - 1) * params.centre_uniform
        drawn = torch.randn(shape, generator=random, device=random.device)
        centres = self._own.mean + params.centre_spread * self._own.std * drawn
        return centres.clamp(-params.centre_reach, params.centre_reach)

    def loss(self, view: GeneratorPass) -> Tensor:
        """Return the distance, beyond the tolerance, of the attention's centres from those of the condition."""
        if view.condition.extra is None:
            raise PluginError("the attention-centre loss needs a condition with centres")
        return centre_matching_loss(view.maps.attention[-1], view.condition.extra, self._params.centre_tolerance)

    def observe(self, view: GeneratorPass, step: int) -> None:  # noqa: ARG002 - the interface
        """Update the running mean and deviation of the attention's centres."""
        self._own.update(attention_centre(view.maps.attention[-1].detach()))

    def finish(self, step: int) -> None:
        """Choose the next step's distribution."""
        self._follows = self._params.centre_condition == "running" and step + 1 >= self.start

    def state_dict(self) -> dict[str, Any]:
        """Return the running mean and deviation, and whether the condition follows them."""
        return {"own": self._own.state_dict(), "follows": self._follows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._own.load_state_dict(state["own"])
        self._follows = bool(state["follows"])


def _pair(view: GeneratorPass, margin: float) -> Tensor:
    return pair_similarity_loss(*pairs(view.maps.attention[-1]), margin)


def _consistency(view: GeneratorPass) -> Tensor:
    if len(view.images) == 1:  # without batch statistics
        return view.images.sum() * 0
    return attention_consistency_loss(view.maps.attention, view.second_pass.maps.attention)


def _second_bns(view: GeneratorPass) -> Tensor:
    return view.images.sum() * 0 if len(view.images) == 1 else bns_loss(view.second_pass.statistics)


def synthesize(teacher: nn.Module, ctx: Context, params: AcqParams) -> GeneratorSource:
    """Build GDFQ's generator, conditioned on attention centres, with batches of pairs.

    L_GDFQ + centre_weight L_ac + pair_weight L_pair + consistency_weight L_cons; L_cons compares the attention under
    the running and the batch's BatchNorm statistics. Before `attention_start`: L_GDFQ.
    """
    epoch = params.attention_start_large if is_large(ctx.card.input_size) else params.attention_start
    start = generator_schedule(ctx, params).step_of(epoch)
    centre = CentreTerm(params, start, ctx.device)
    pair = partial(_pair, margin=params.pair_margin)
    second_bns_weight = params.bns_weight if params.bns_both else 0.0
    losses = [
        *base_terms(ctx, params),
        centre,
        FunctionTerm("pair", params.pair_weight, pair, start=start, maps=True),
        FunctionTerm("consistency", params.consistency_weight, _consistency, start=start, maps=True),
        FunctionTerm("bns_second", second_bns_weight, _second_bns, start=start, statistics=True),
    ]
    draw = paired_condition(params.latent, ctx.card.classes, centre.draw_centres)
    return GeneratorSource(teacher, ctx, params, what="acq", losses=losses, draw=draw, extra=CENTRE_SIZE)
