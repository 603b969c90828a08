"""Schemes: what is quantized and how, as plain data.

A label such as `w4a4@gdfq` names bits and protocol. A protocol fixes everything but the bits.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dfqbench.api.errors import UsageError, unknown_name

OFF = 32
"""Bit-width of what is left in float."""
VALID_BITS = (2, 3, 4, 5, 6, 7, 8, OFF)


class Granularity(StrEnum):
    """The elements with a common range: those of an output channel, or of the tensor."""

    CHANNEL = "channel"
    TENSOR = "tensor"


class ClampGradient(StrEnum):
    """The gradient of a clamped element: passed, or masked to zero."""

    PASS = "pass"  # noqa: S105 - no password
    MASK = "mask"


class Placement(StrEnum):
    """Which activations are quantized: outputs of activation functions, or inputs of convolutions and linear layers."""

    ACTIVATION_OUTPUT = "activation_output"
    LAYER_INPUT = "layer_input"


class Rounding(StrEnum):
    """The formula: ZeroQ's scale and integer zero point (methods.md 0.1), or torch's step size and zero point."""

    ZEROQ = "integral_shift"
    AFFINE = "scale_zero_point"


@dataclass(frozen=True, slots=True)
class Operand:
    """The quantization of weights or of activations.

    Attributes:
        granularity: one range for each output channel, or one for the tensor.
        symmetric: levels symmetric about zero (2^bits - 1 of them) rather than from minimum to maximum (2^bits).
        zero_in_range: whether the range is widened to contain zero.
        rounding: the formula.
        clamp_gradient: the gradient of a clamped element.
    """

    granularity: Granularity
    symmetric: bool
    zero_in_range: bool
    rounding: Rounding
    clamp_gradient: ClampGradient

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Operand:
        """Read what `dataclasses.asdict` made of an operand."""
        granularity, rounding = Granularity(data["granularity"]), Rounding(data["rounding"])
        gradient = ClampGradient(data["clamp_gradient"])
        return cls(**{**data, "granularity": granularity, "rounding": rounding, "clamp_gradient": gradient})


@dataclass(frozen=True, slots=True)
class Override:
    """Other bits for the layers whose dotted name matches a shell-style pattern.

    Attributes:
        pattern: for example `layer4.*`.
        w_bits: bits of the weights, or None: unchanged.
        a_bits: bits of the layer's input (`layer_input`) or of the activation's output (`activation_output`), or None.
    """

    pattern: str
    w_bits: int | None = None
    a_bits: int | None = None


@dataclass(frozen=True, slots=True)
class Protocol:
    """Everything of a scheme but its bits.

    Attributes:
        name: label after the `@`.
        weights: how weights are quantized.
        activations: how activations are quantized.
        placement: which activations are quantized.
        first_bits: bits of the first layer's weight, or None: as the others.
        last_bits: bits of the last layer's weight (and input, under `layer_input`), or None: as the others.
        input_bits: bits of the network's input image; 32 leaves it in float, as the first layer's input.
        second_input_bits: bits of the second layer's input, or None: as the others (`layer_input`).
        last_input_bits: bits of the last layer's input, or None: `last_bits` (`layer_input`).
        quantize_identity: whether everything that reads a layer's input reads it quantized, such as the sum at the end
            of a residual block; otherwise only layers do (`layer_input`).
        fold_batchnorm: fold BatchNorm into a convolution that directly precedes it.
        overrides: exceptions by layer name; the last match wins.
    """

    name: str
    weights: Operand
    activations: Operand
    placement: Placement
    first_bits: int | None = None
    last_bits: int | None = None
    input_bits: int = OFF
    second_input_bits: int | None = None
    last_input_bits: int | None = None
    quantize_identity: bool = False
    fold_batchnorm: bool = False
    overrides: tuple[Override, ...] = ()


GDFQ = Protocol(
    name="gdfq",
    weights=Operand(Granularity.CHANNEL, False, False, Rounding.ZEROQ, ClampGradient.PASS),
    activations=Operand(Granularity.TENSOR, False, False, Rounding.ZEROQ, ClampGradient.PASS),
    placement=Placement.ACTIVATION_OUTPUT,
)
"""The released code of ZeroQ and GDFQ (methods.md 0.1): all weights, and the outputs of activation functions."""

DEPLOY = Protocol(
    name="deploy",
    weights=Operand(Granularity.CHANNEL, True, True, Rounding.AFFINE, ClampGradient.MASK),
    activations=Operand(Granularity.TENSOR, False, True, Rounding.AFFINE, ClampGradient.MASK),
    placement=Placement.LAYER_INPUT,
    first_bits=8,
    last_bits=8,
    input_bits=8,
    fold_batchnorm=True,
)
"""Integer hardware: BatchNorm folded, layer inputs quantized, first and last layer at 8 bits."""

TENSOR = dataclasses.replace(
    DEPLOY, name="tensor", weights=dataclasses.replace(DEPLOY.weights, granularity=Granularity.TENSOR)
)
"""As `deploy`, with one range for each weight tensor."""

SQUANT = Protocol(
    name="squant",
    weights=GDFQ.weights,
    activations=dataclasses.replace(GDFQ.activations, zero_in_range=True),
    placement=Placement.LAYER_INPUT,
    last_input_bits=8,
)
"""The released code of SQuant (Guo, ICLR 2022): layer inputs, without the network's; the last one has 8 bits."""

BRECQ = Protocol(
    name="brecq",
    weights=Operand(Granularity.CHANNEL, False, True, Rounding.AFFINE, ClampGradient.MASK),
    activations=DEPLOY.activations,
    placement=Placement.LAYER_INPUT,
    first_bits=8,
    last_bits=8,
    second_input_bits=8,
    quantize_identity=True,
)
"""BRECQ's and Genie's: inputs of layers and identities, without the network's; 8 bits at both ends."""

BRECQ_FOLDED = dataclasses.replace(BRECQ, name="brecq-folded", fold_batchnorm=True)
"""As `brecq`, with BatchNorm folded."""

PROTOCOLS: dict[str, Protocol] = {p.name: p for p in (GDFQ, DEPLOY, TENSOR, SQUANT, BRECQ, BRECQ_FOLDED)}
DEFAULT_PROTOCOL = GDFQ.name


@dataclass(frozen=True, slots=True)
class Scheme:
    """Bits and protocol.

    Attributes:
        w_bits: bits of the weights; 32 is off.
        a_bits: bits of the activations; 32 is off.
        protocol: everything else.
    """

    w_bits: int
    a_bits: int
    protocol: Protocol = GDFQ

    def __post_init__(self) -> None:
        for operands, bits in (("weights", self.w_bits), ("activations", self.a_bits)):
            if bits not in VALID_BITS:
                raise UsageError(f"{bits} bits for {operands} are not supported", "use 2 to 8, or 32 for off")

    @property
    def label(self) -> str:
        """Bits and protocol, for example `w4a4@gdfq`."""
        return f"w{self.w_bits}a{self.a_bits}@{self.protocol.name}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for records and identities, for `Scheme.from_dict`."""
        return {"label": self.label} | dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scheme:
        """Read what `as_dict` wrote.

        Raises:
            UsageError: a key is missing or unknown.
        """
        try:
            raw = data["protocol"]
            operands = {name: Operand.from_dict(raw[name]) for name in ("weights", "activations")}
            overrides = tuple(Override(**item) for item in raw["overrides"])
            typed = operands | {"placement": Placement(raw["placement"]), "overrides": overrides}
            return cls(int(data["w_bits"]), int(data["a_bits"]), Protocol(**{**raw, **typed}))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"not a scheme: {error}", "write it as bits@protocol, for example w4a4@gdfq") from error

    def overridden(self, layer: str) -> Override | None:
        """Return the last override whose pattern matches the layer's dotted name, or None."""
        matches = (o for o in reversed(self.protocol.overrides) if fnmatch.fnmatchcase(layer, o.pattern))
        return next(matches, None)


_BITS = "(0|[1-9][0-9]?)"
_LABEL = re.compile(f"[wW]{_BITS}[aA]{_BITS}(?:@([A-Za-z0-9_-]+))?")


def parse_scheme(label: str, protocols: dict[str, Protocol] | None = None) -> Scheme:
    """Read a label such as `w4a4`, `w3a3@deploy` or `W4A4@gdfq`.

    Args:
        label: bits, and optionally `@protocol` (default `gdfq`).
        protocols: further protocols by name (a grid's own).

    Raises:
        UsageError: the label has another form, or names unknown bits or an unknown protocol.
    """
    match = _LABEL.fullmatch(label.strip())
    if match is None:
        raise UsageError(f"'{label}' is not a scheme", "write bits@protocol, for example w4a4 or w4a4@deploy")
    known = PROTOCOLS | (protocols or {})
    name = (match.group(3) or DEFAULT_PROTOCOL).lower()
    if name not in known:
        raise unknown_name("protocol", name, known)
    return Scheme(int(match.group(1)), int(match.group(2)), known[name])
