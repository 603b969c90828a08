"""Mixed precision as plain data: a budget for the bits of weights, which a planner gives to layers; free of torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import PositiveInt

from dfqbench.api.errors import UsageError
from dfqbench.api.params import param

_BUDGET = re.compile(r"(size|bops)=([1-9])bit|size=([0-9]{1,9}(?:\.[0-9]{1,9})?)([KM])iB")
_BYTES = {"K": 2**10, "M": 2**20}
LEAST_BITS, MOST_BITS = 2, 8
"""Widths that weights can have."""


@dataclass(frozen=True)
class Mixed:
    """A budget, and how layers are compared to meet it (ZeroQ, Cai et al., CVPR 2020)."""

    budget: str = param(
        "size=4bit",
        help="`size=4bit`: weights as large as with 4 bits everywhere; `size=2.5MiB` (KiB, MiB): so large; "
        "`bops=4bit`: bit operations as with weights of 4 bits",
        source="a choice of this benchmark: the width that most papers print",
    )
    bits: tuple[int, ...] = param((2, 4, 8), help="widths that a layer can get", unit="bits", source="paper")
    divergence: Literal["symmetric", "plain"] = param(
        "symmetric",
        help="distance of the network's answers p to those with one rounded layer, q: mean of KL(p, q) and KL(q, p), "
        "or KL(p, q)",
        source="released code (ZeroQ mixed precision); the paper has `plain`",
    )
    images: PositiveInt = param(
        64, help="images that the distance is measured on", unit="images", source="released code (ZeroQ)"
    )

    def __post_init__(self) -> None:
        """Refuse a budget of another form, one below every width, and widths that weights cannot have."""
        match = _BUDGET.fullmatch(self.budget)
        if match is None:
            raise UsageError(f"'{self.budget}' is not a budget", "write size=4bit, size=2.5MiB or bops=4bit")
        if len(set(self.bits)) < 2 or not all(LEAST_BITS <= bits <= MOST_BITS for bits in self.bits):
            raise UsageError(
                f"mixed.bits {','.join(map(str, self.bits))} gives layers no choice of widths",
                f"name two or more of {LEAST_BITS} to {MOST_BITS}, for example 2,4,8",
            )
        bits, least = self.uniform_bits, min(self.bits)
        if bits is not None and not least <= bits <= MOST_BITS:
            raise UsageError(f"the budget {self.budget} cannot be met", f"name {least} to {MOST_BITS} bits")

    @property
    def counts_operations(self) -> bool:
        """Whether the budget is one of bit operations rather than of size."""
        return self.budget.startswith("bops")

    @property
    def uniform_bits(self) -> int | None:
        """Width of the weights of the network that sets the budget; None: a size sets it."""
        match = _BUDGET.fullmatch(self.budget)
        return int(match[2]) if match is not None and match[2] else None

    @property
    def size_in_bits(self) -> float | None:
        """Most bits of all weights; None: a network sets the budget."""
        match = _BUDGET.fullmatch(self.budget)
        return float(match[3]) * _BYTES[match[4]] * 8 if match is not None and match[3] else None

    @property
    def changed(self) -> list[str]:
        """Names of the parameters besides the budget whose values are not the defaults."""
        fields = dataclasses.fields(self)
        return [field.name for field in fields if field.name != "budget" and getattr(self, field.name) != field.default]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Mixed:
        """Read what `dataclasses.asdict` made of it."""
        return cls(**{**data, "bits": tuple(data["bits"])})
