"""Schemes: what is quantized and how, as plain data.

A label such as `w4a4@gdfq` names bits and protocol. A protocol fixes everything but the bits. `w4a4@gdfq:size=4bit`
adds a budget: the bits of each layer's weights follow from images.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dfqbench.api.errors import UsageError, unknown_name
from dfqbench.quant.mixed import Mixed

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
        integer_bias: whether the bias of a layer with quantized weight and input is an int32, in steps of the product
            of their step sizes, as integer hardware adds it.
        overrides: exceptions by layer name; the last match wins.
        version: number of the name's present meaning; records without one have version 1.
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
    integer_bias: bool = False
    overrides: tuple[Override, ...] = ()
    version: int = 1


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
    integer_bias=True,
    version=2,
)
"""Integer hardware: BatchNorm folded, layer inputs quantized, first and last layer at 8 bits, biases as int32."""

TENSOR = dataclasses.replace(
    DEPLOY, name="tensor", weights=dataclasses.replace(DEPLOY.weights, granularity=Granularity.TENSOR), version=1
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
"""Genie's released code: inputs of layers and identities, without the network's; 8 bits at both ends."""

BRECQ_FOLDED = dataclasses.replace(BRECQ, name="brecq-folded", fold_batchnorm=True)
"""As `brecq`, with BatchNorm folded, as BRECQ's released code does."""

PROTOCOLS: dict[str, Protocol] = {p.name: p for p in (GDFQ, DEPLOY, TENSOR, SQUANT, BRECQ, BRECQ_FOLDED)}
DEFAULT_PROTOCOL = GDFQ.name

EARLIER: tuple[Protocol, ...] = (dataclasses.replace(DEPLOY, integer_bias=False, version=1),)
"""What names of built-in protocols meant in earlier records."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """Bits and protocol.

    Attributes:
        w_bits: bits of the weights; 32 is off. In mixed precision: those of the budget, where it names bits.
        a_bits: bits of the activations; 32 is off.
        protocol: everything else. Once layers have their bits (`with_layers`), its last overrides hold them.
        mixed: budget of mixed precision, or None: weights have the same bits everywhere, but for the protocol.
    """

    w_bits: int
    a_bits: int
    protocol: Protocol = GDFQ
    mixed: Mixed | None = None

    def __post_init__(self) -> None:
        for operands, bits in (("weights", self.w_bits), ("activations", self.a_bits)):
            if bits not in VALID_BITS:
                raise UsageError(f"{bits} bits for {operands} are not supported", "use 2 to 8, or 32 for off")
        if self.mixed is not None and self.w_bits != (self.mixed.uniform_bits or self.w_bits):
            raise UsageError(
                f"the budget {self.mixed.budget} does not fit weights of {self.w_bits} bits",
                f"write {self.mixed_with(self.mixed).label}",
            )
        if self.mixed is not None and self.w_bits == OFF:
            raise UsageError(f"weights in float have no budget ({self.mixed.budget})", "give them bits, as in w4a4")

    @property
    def label(self) -> str:
        """Bits, protocol and budget, for example `w4a4@gdfq` and `w4a4@gdfq:size=4bit`."""
        budget = "" if self.mixed is None else f":{self.mixed.budget}"
        return f"w{self.w_bits}a{self.a_bits}@{self.protocol.name}{budget}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for records and identities, for `Scheme.from_dict`."""
        data = {"label": self.label} | dataclasses.asdict(self)
        if self.mixed is None:
            # Identities and seeds of earlier schemes stay what they were.
            del data["mixed"]
        return data

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
            mixed = None if data.get("mixed") is None else Mixed.from_dict(data["mixed"])
            return cls(int(data["w_bits"]), int(data["a_bits"]), Protocol(**{**raw, **typed}), mixed)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"not a scheme: {error}", "write it as bits@protocol, for example w4a4@gdfq") from error

    def overridden(self, layer: str) -> Override | None:
        """Return the last override whose pattern matches the layer's dotted name, or None."""
        matches = (o for o in reversed(self.protocol.overrides) if fnmatch.fnmatchcase(layer, o.pattern))
        return next(matches, None)

    def mixed_with(self, mixed: Mixed) -> Scheme:
        """Return the scheme with a budget; where that names bits, they replace those of the weights."""
        return dataclasses.replace(self, w_bits=mixed.uniform_bits or self.w_bits, mixed=mixed)

    def with_layers(self, bits: Mapping[str, int]) -> Scheme:
        """Return the scheme with bits for the weights of some layers, by dotted name."""
        earlier = self.protocol.overrides
        a_bits = {name: getattr(self.overridden(name), "a_bits", None) for name in bits}
        chosen = tuple(Override(glob.escape(name), count, a_bits[name]) for name, count in bits.items())
        return dataclasses.replace(self, protocol=dataclasses.replace(self.protocol, overrides=(*earlier, *chosen)))


_BITS = "(0|[1-9][0-9]?)"
_LABEL = re.compile(f"[wW]{_BITS}[aA]{_BITS}(?:@([A-Za-z0-9_-]+))?(?::(.*))?")


def parse_scheme(label: str, protocols: dict[str, Protocol] | None = None) -> Scheme:
    """Read a label such as `w4a4`, `w3a3@deploy`, `W4A4@gdfq` or `w4a4@gdfq:size=4bit`.

    Args:
        label: bits, and optionally `@protocol` (default `gdfq`) and `:budget` (see `quant.mixed.Mixed`).
        protocols: further protocols by name (a grid's own).

    Raises:
        UsageError: the label has another form, or names unknown bits, an unknown protocol or no budget.
    """
    match = _LABEL.fullmatch(label.strip())
    if match is None:
        raise UsageError(f"'{label}' is not a scheme", "write bits@protocol, for example w4a4 or w4a4@deploy")
    known = PROTOCOLS | (protocols or {})
    name = (match.group(3) or DEFAULT_PROTOCOL).lower()
    if name not in known:
        raise unknown_name("protocol", name, known)
    mixed = None if match.group(4) is None else Mixed(match.group(4))
    return Scheme(int(match.group(1)), int(match.group(2)), known[name], mixed)
