"""Coverage: the share of a student's multiply-accumulates whose operands are both quantized, measured on the operands.

The measurement does not trust the rewriter: a dispatch mode checks that the weight and the input that reach a kernel
take few enough, evenly spaced values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dfqbench.quant.fake_quantize import add_residual_terms, fake_quantize_weight
from dfqbench.quant.fake_quantize_modules import FakeQuantize, FakeQuantizeWeight
from dfqbench.quant.scheme import OFF, Granularity, Operand, Placement, Scheme
from dfqbench.quant.student import Student
from dfqbench.quant.trace import WEIGHTED

ATEN = torch.ops.aten
OUTSIDE = "(outside layers)"
"""Name of products that no convolution or linear layer computes, for example attention."""


@dataclass(slots=True)
class Coverage:
    """The measured coverage of a student.

    Attributes:
        macs_quantized: multiply-accumulates an image with both operands on quantization levels of the scheme's width.
        macs_total: all multiply-accumulates an image.
        weight_macs: the same, each counted once for every term of its weight.
        bit_operations: the same, each times the bits of both operands; 32 bits for one that is not quantized.
        float_layers: layers with an operand off such levels, each with the operand (`conv1: input`).
        violations: operands that the scheme quantizes and that are off their levels; empty in a valid student.
    """

    macs_quantized: int = 0
    macs_total: int = 0
    weight_macs: int = 0
    bit_operations: int = 0
    float_layers: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of quantized multiply-accumulates, 0 to 1."""
        return self.macs_quantized / self.macs_total if self.macs_total else 0.0

    @property
    def levels_ok(self) -> bool:
        """Whether every quantized operand is on its quantization levels."""
        return not self.violations

    def as_dict(self, images: int = 1) -> dict[str, Any]:
        """Return counts and layers in float as plain data for the record, where the counts are of so many images."""
        return {
            "macs_quantized": self.macs_quantized // images,
            "macs_total": self.macs_total // images,
            "weight_terms": self.weight_macs / self.macs_total if self.macs_total else None,
            "bit_operations": self.bit_operations // images,
            "float_layers": self.float_layers,
        }


class _Product(NamedTuple):
    """A matrix product or convolution of a weight and an input."""

    weight: Tensor
    input: Tensor
    macs: int


def _convolution(args: tuple[Any, ...], out: Tensor) -> _Product:
    inputs, weight, transposed = args[0], args[1], bool(args[6])
    outer = inputs.numel() if transposed else out.numel()
    return _Product(weight, inputs, outer * weight[0].numel())


def _matrix_product(inputs: Tensor, weight: Tensor, out: Tensor) -> _Product:
    return _Product(weight, inputs, out.numel() * inputs.shape[-1])


PRODUCTS: dict[Any, Callable[[tuple[Any, ...], Tensor], _Product]] = {
    ATEN.convolution.default: _convolution,
    ATEN.addmm.default: lambda args, out: _matrix_product(args[1], args[2].t(), out),
    ATEN.mm.default: lambda args, out: _matrix_product(args[0], args[1].t(), out),
    ATEN.bmm.default: lambda args, out: _matrix_product(args[0], args[1].transpose(-1, -2), out),
    ATEN.linear.default: lambda args, out: _matrix_product(args[0], args[1], out),
}


class _Weights:
    """Checks that weights are what a scheme and a student claim.

    Args:
        operand: how the scheme quantizes weights.
        quantizers: weight quantizers of a student's layers, by name; they say which weights are sums of terms.
    """

    def __init__(self, operand: Operand, quantizers: Mapping[str, FakeQuantizeWeight]) -> None:
        self._operand = operand
        self._sums = {name: module for name, module in quantizers.items() if module.residual_scales is not None}

    def quantized(self, name: str, weight: Any, bits: int) -> bool:
        """Check that the weight of a layer is a tensor on levels of this width, or a sum of such."""
        if not isinstance(weight, Tensor) or bits == OFF:
            return False
        if name in self._sums:
            return is_sum_of_levels(weight, self._operand, bits, self._sums[name])
        return weight_is_quantized(weight, bits, self._operand.granularity)

    def macs(self, name: str, macs: int) -> int:
        """Return the multiply-accumulates of a layer, each counted once for every term of its output channel."""
        scales = self._sums[name].residual_scales if name in self._sums else None
        return macs if scales is None else macs + macs * int((scales > 0).sum()) // scales.shape[1]


class _OperandCheck(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the multiply-accumulates of a pass in `coverage`; `stack` holds the names of the layers that now run.

    `bits` returns the widths that count as quantized for a layer's weight and input, by its name; 32: none does.
    """

    def __init__(
        self,
        bits: Callable[[str], tuple[int, int]],
        weights: _Weights,
        coverage: Coverage,
        stack: list[str],
        images: int,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bits = bits
        self._weights = weights
        self._coverage = coverage
        self._stack = stack
        self._images = images

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self._count(self._stack[-1] if self._stack else OUTSIDE, PRODUCTS[func](args, out))
        return out

    def _count(self, name: str, product: _Product) -> None:
        coverage, macs = self._coverage, product.macs // self._images
        weight_bits, input_bits = self._bits(name)
        in_float = []
        if not self._weights.quantized(name, product.weight, weight_bits):
            in_float.append("weight")
            weight_bits = OFF
        if input_bits == OFF or not is_quantized(product.input, input_bits):
            in_float.append("input")
            input_bits = OFF
        weight_macs = macs if weight_bits == OFF else self._weights.macs(name, macs)
        coverage.macs_total += macs
        coverage.macs_quantized += 0 if in_float else macs
        coverage.weight_macs += weight_macs
        coverage.bit_operations += weight_macs * weight_bits * input_bits
        entry = f"{name}: {' and '.join(in_float)}"
        if in_float and entry not in coverage.float_layers:
            coverage.float_layers.append(entry)


def expected_bits(student: Student, name: str) -> tuple[int, int]:
    """Return the bit-widths that count as quantized for a layer's weight and input; 32: none does.

    Under a protocol that quantizes activation outputs the scheme names no input; one counts where it nevertheless
    lies on levels of the scheme's width.
    """
    scheme, layer = student.scheme, student.layers.get(name)
    if name == OUTSIDE:
        return OFF, scheme.a_bits
    if layer is None:
        return scheme.w_bits, scheme.a_bits
    return layer.weight, layer.input if scheme.protocol.placement is Placement.LAYER_INPUT else scheme.a_bits


@contextmanager
def _hooked(student: Student, stack: list[str], violations: list[str]) -> Iterator[None]:
    """Keep the names of the running layers in `stack`, and add activations off their levels to `violations`."""

    def check(module: nn.Module, _args: Any, out: Tensor) -> None:
        name = f"activation {module.name}"
        if name not in violations and isinstance(module, FakeQuantize) and not is_quantized(out, module.bits):
            violations.append(name)

    with ExitStack() as handles, _layer_names(student.network, stack):
        for quantizer in student.activation_quantizers():
            handles.enter_context(quantizer.register_forward_hook(check))
        yield


@contextmanager
def _layer_names(network: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the names of the running layers in `stack`."""
    with ExitStack() as handles:
        for name, module in network.named_modules():
            if isinstance(module, WEIGHTED):
                push = module.register_forward_pre_hook(lambda _m, _args, name=name: stack.append(name))
                handles.enter_context(push)
                handles.enter_context(module.register_forward_hook(lambda _m, _args, _out: stack.pop() and None))
        yield


@contextmanager
def measuring(network: nn.Module, scheme: Scheme) -> Iterator[Coverage]:
    """Measure every pass of any network in the block, for example one that is no `Student`.

    An operand counts as quantized if it lies on levels of the scheme's general width, first and last layer included; so
    do those of products outside layers. `macs_quantized` and `macs_total` are sums over all images.
    """
    coverage, stack = Coverage(), list[str]()
    weights = _Weights(scheme.protocol.weights, {})
    check = _OperandCheck(lambda _: (scheme.w_bits, scheme.a_bits), weights, coverage, stack, 1)
    with _layer_names(network, stack), check:
        yield coverage


@torch.no_grad()
def measure_coverage(student: Student, images: Tensor) -> Coverage:
    """Run a few images through a finished student and measure its operands.

    Args:
        student: with frozen ranges.
        images: (N, C, H, W) in normalised input space, on the student's device; a handful suffices.

    Returns:
        Coverage for one image, and every quantized operand that is off its levels.
    """
    coverage = Coverage()
    quantizers = {name: quantizer for name, _, quantizer in student.quantized_weights()}
    weights = _Weights(student.scheme.protocol.weights, quantizers)
    for operand in student.operands:
        if operand.role == "weight":
            weight = student.network.get_submodule(operand.name).weight
            if not weights.quantized(operand.name, weight, operand.bits):
                coverage.violations.append(f"weight {operand.name}")
    stack: list[str] = []
    check = _OperandCheck(partial(expected_bits, student), weights, coverage, stack, images.shape[0])
    seen = student.images_seen
    with _hooked(student, stack, coverage.violations), check:
        student(images)
    student.images_seen = seen
    for entry in coverage.float_layers:
        name, _, in_float = entry.rpartition(": ")
        if "input" in in_float and name in student.layers and student.layers[name].input != OFF:
            coverage.violations.append(f"input of {name}")
    activations = student.activation_quantizers()
    without_range = [quantizer.name for quantizer in activations if int(quantizer.batches) == 0]
    coverage.violations += [f"activation {name} (its range saw no batch)" for name in without_range]
    missing = {operand.name for operand in student.operands if operand.role == "activation"}
    missing -= {quantizer.name for quantizer in activations}
    coverage.violations += [f"activation {name} (not in the network)" for name in sorted(missing)]
    return coverage


SAMPLE = 1 << 16
"""Elements examined first; enough to recognise a tensor in float."""
TOLERANCE = 0.05
"""Largest distance from a level, in steps; float32 rounding stays far below, unquantized values do not."""


def distinct_levels(values: Tensor, limit: int) -> Tensor | None:
    """Return the sorted distinct values of a tensor without a graph, or None when there are more than `limit`."""
    flat = values.reshape(-1)
    stride = max(1, flat.numel() // SAMPLE)
    levels: Tensor = torch.unique(flat[::stride])
    if levels.numel() > limit:
        return None
    if stride == 1:
        return levels
    # The other elements are only compared with these levels, which is far cheaper than sorting.
    nearest = torch.searchsorted(levels, flat).clamp_max(levels.numel() - 1)
    others = flat[levels[nearest] != flat]
    levels = torch.unique(torch.cat((levels, torch.unique(others))))
    return levels if levels.numel() <= limit else None


def is_quantized(values: Tensor, bits: int) -> bool:
    """Check that a tensor without a graph takes only finite values on 2^bits evenly spaced levels."""
    levels = distinct_levels(values, 2**bits)
    if levels is None or not bool(torch.isfinite(levels).all()):
        return False
    if levels.numel() <= 2:
        return True
    # The step is unknown: some number of steps must fit between the outermost levels.
    exact = levels.double()
    steps = torch.arange(levels.numel() - 1, 2**bits, dtype=torch.float64, device=values.device)
    position = (exact - exact[0])[None, :] / (exact[-1] - exact[0]) * steps[:, None]
    off = (position - position.round()).abs().amax(dim=1)
    return bool((off < TOLERANCE).any())


def weight_is_quantized(weight: Tensor, bits: int, granularity: Granularity) -> bool:
    """Check that a weight without a graph takes at most 2^bits values: in each output channel, or altogether."""
    limit: int = 2**bits
    if granularity is Granularity.TENSOR:
        return distinct_levels(weight, limit) is not None
    return most_levels_per_channel(weight) <= limit


def is_sum_of_levels(weight: Tensor, operand: Operand, bits: int, claimed: FakeQuantizeWeight) -> bool:
    """Check that a weight without a graph is a sum of terms with at most 2^bits levels in each quantization group.

    Any number is near such a sum of many terms, so that counting its values says nothing: the levels are those of the
    scales that the student claims. Rounding a sum term by term leaves it as it is; what is no sum leaves a remainder.

    Args:
        weight: (out, ...), of the values that the layer computes with.
        operand: how the scheme quantizes weights.
        bits: width of each term by the scheme.
        claimed: holds the scales of all terms and the zero point of the first.
    """
    first, zero_point, others = claimed.scale, claimed.zero_point, claimed.residual_scales
    if first is None or zero_point is None or others is None or others.shape[1:] != weight.shape[:1]:
        return False
    shape = weight.shape[:1]
    if operand.granularity is Granularity.TENSOR:
        shape = torch.Size()
        if bool(((others != 0) & (others != others.amax(1, keepdim=True))).any()):
            return False
    if first.shape != shape or zero_point.shape != shape or not bool((others >= 0).all()):
        return False
    rounded, _ = fake_quantize_weight(weight, operand, bits, (first, zero_point))
    remainder = (weight - add_residual_terms(weight, rounded, others, bits)).abs().flatten(1)
    # What float32 may round in a sum; a share of a step would let weights in float pass where a step is large.
    slack = 4 * torch.finfo(weight.dtype).eps * weight.abs().flatten(1).amax(1)
    return bool((remainder <= slack.unsqueeze(1)).all())


def most_levels_per_channel(weight: Tensor) -> int:
    """Return the largest number of distinct values in any channel of a weight (out, ...) without a graph."""
    rows = weight.reshape(weight.shape[0], -1)
    if rows.shape[1] == 0:
        return 0
    ordered = rows.sort(dim=1).values
    changes = (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1)
    return int(changes.max()) + 1
