"""Range rules by name, with their observers' import strings; free of torch, so that parameters are checked early.

A rule is written as its name, or as `name:number` with the one number that some rules have: `percentile:99.9`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from dfqbench.api.errors import UsageError, unknown_name
from dfqbench.api.method import Offer

OFFICIAL_EMA_STEPS = 200
"""Steps after which the overshoot of the official moving average has settled (methods.md 0.1)."""
BUILTIN: tuple[Offer, ...] = (
    Offer("minmax", "dfqbench.quant.observers:MinMaxObserver"),
    Offer("ema", "dfqbench.quant.observers:MovingAverageObserver"),
    Offer("ema-official", "dfqbench.quant.observers:OfficialMovingAverageObserver"),
    Offer("mean", "dfqbench.quant.clipping_observers:MeanObserver"),
    Offer("percentile", "dfqbench.quant.clipping_observers:PercentileObserver"),
    Offer("mse", "dfqbench.quant.clipping_observers:MseObserver"),
    Offer("sigma", "dfqbench.quant.clipping_observers:SigmaObserver"),
)
"""The range rules that come with the host; plugins offer more (hook `dfqbench_range_rules`)."""
FROM_BATCHNORM = "bn"
"""The rule without an observer: ranges from BatchNorm's parameters (see `set_ranges_from_batchnorm`)."""
BN_DEVIATIONS = 6.0
"""Number of `bn`: standard deviations from the mean to either end (inferred from Nagel et al. 2019)."""
PERCENTILE = 99.999
"""Number of `percentile`: percent of the values below the upper end (DSG, released code)."""
_NUMBERS = {"percentile": (50.0, 100.0), "sigma": (0.0, 1000.0), FROM_BATCHNORM: (0.0, 1000.0)}
"""Rules that have a number, with its smallest and largest value."""

_rules: dict[str, str] = {offer.name: offer.load for offer in BUILTIN}


def known_range_rules() -> Mapping[str, str]:
    """Return the observer class of each range rule of this process, as `module:class` by name."""
    return MappingProxyType(_rules)


def set_range_rules(rules: Mapping[str, str]) -> None:
    """Set the range rules of this process: `module:class` by name, the host's own included."""
    _rules.clear()
    _rules.update(rules)


def split_range_rule(rule: str) -> tuple[str, float | None]:
    """Return name and number of a range rule; None: it is written without one.

    Raises:
        UsageError: unknown rule, a number where none belongs, or one that is out of bounds.
    """
    name, colon, text = rule.partition(":")
    if name not in _rules and name != FROM_BATCHNORM:
        raise unknown_name("range rule", name, [*_rules, FROM_BATCHNORM])
    if not colon:
        return name, None
    if name not in _NUMBERS:
        raise UsageError(f"range rule '{name}' has no number, got '{rule}'", f"write '{name}'")
    lowest, highest = _NUMBERS[name]
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not lowest <= number <= highest or number <= 0:
        bounds = f"from {lowest:g} to {highest:g}" if lowest else f"above 0, at most {highest:g}"
        raise UsageError(f"'{text}' is no number of range rule '{name}'", f"write {name}:NUMBER, {bounds}")
    return name, number


def check_range_rule(rule: str, steps: int | None = None, *, needs_batches: bool = True) -> None:
    """Check a range rule and the length of its phase.

    Args:
        rule: name of the rule, or `name:number`.
        steps: batches of the phase, or None: not known yet.
        needs_batches: whether the ranges have to follow batches.

    Raises:
        UsageError: unknown rule; a number that is out of bounds; `bn` where ranges follow batches; or `ema-official`
            for fewer than 200 steps (its range would be hundreds of times too wide: the bias-corrected value is fed
            back into the average).
    """
    name, _ = split_range_rule(rule)
    if name == FROM_BATCHNORM and needs_batches:
        raise UsageError(
            "range rule 'bn' follows no batches: it sets ranges from BatchNorm's parameters",
            "use it with `calibrate`, or a rule that follows batches",
        )
    if name == "ema-official" and steps is not None and steps < OFFICIAL_EMA_STEPS:
        raise UsageError(
            f"range rule 'ema-official' needs at least {OFFICIAL_EMA_STEPS} steps, got {steps}",
            "use rule 'ema' or a longer budget",
        )
