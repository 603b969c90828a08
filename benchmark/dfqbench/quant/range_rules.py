"""Range rules by name, with their observers' import strings; free of torch, so that parameters are checked early."""

from __future__ import annotations

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
)
"""The range rules that come with the host; plugins offer more (hook `dfqbench_range_rules`)."""

_rules: dict[str, str] = {offer.name: offer.load for offer in BUILTIN}


def known_range_rules() -> Mapping[str, str]:
    """Return the observer class of each range rule of this process, as `module:class` by name."""
    return MappingProxyType(_rules)


def set_range_rules(rules: Mapping[str, str]) -> None:
    """Set the range rules of this process: `module:class` by name, the host's own included."""
    _rules.clear()
    _rules.update(rules)


def check_range_rule(rule: str, steps: int | None = None) -> None:
    """Check the name of a range rule and the length of its phase.

    Args:
        rule: name of the rule.
        steps: batches of the phase, or None: not known yet.

    Raises:
        UsageError: unknown rule, or `ema-official` for fewer than 200 steps (its range would be hundreds of times too
            wide: the bias-corrected value is fed back into the average).
    """
    if rule not in _rules:
        raise unknown_name("range rule", rule, _rules)
    if rule == "ema-official" and steps is not None and steps < OFFICIAL_EMA_STEPS:
        raise UsageError(
            f"range rule 'ema-official' needs at least {OFFICIAL_EMA_STEPS} steps, got {steps}",
            "use rule 'ema' or a longer budget",
        )
