"""Names of range rules, and where their observers are; free of torch, so that parameters can be checked early."""

from __future__ import annotations

from dfqbench.api.errors import UsageError, unknown_name

OFFICIAL_EMA_STEPS = 200
"""Steps after which the overshoot of the official moving average has settled (methods.md 0.1)."""

RANGE_RULES: dict[str, str] = {
    "minmax": "dfqbench.quant.observers:MinMaxObserver",
    "ema": "dfqbench.quant.observers:MovingAverageObserver",
    "ema-official": "dfqbench.quant.observers:OfficialMovingAverageObserver",
}
"""The observer class of each range rule, as `module:class`; plugins add theirs (hook `dfqbench_range_rules`)."""


def check_range_rule(rule: str, steps: int | None = None) -> None:
    """Check the name of a range rule and, where it is known, that its phase is long enough.

    Args:
        rule: name of the rule.
        steps: batches that the observer will see, or None where that is not known yet.

    Raises:
        UsageError: unknown rule, or `ema-official` for fewer than 200 steps (its range would be hundreds of times too
            wide: the bias-corrected value is fed back into the average).
    """
    if rule not in RANGE_RULES:
        raise unknown_name("range rule", rule, RANGE_RULES)
    if rule == "ema-official" and steps is not None and steps < OFFICIAL_EMA_STEPS:
        raise UsageError(
            f"range rule 'ema-official' needs at least {OFFICIAL_EMA_STEPS} steps, got {steps}",
            "use rule 'ema' or a longer budget",
        )
