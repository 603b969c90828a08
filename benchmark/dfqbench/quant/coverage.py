"""Coverage: the share of a student's multiply-accumulates whose operands are both quantized, measured on the operands.

The measurement does not trust the rewriter: a dispatch mode checks that the weight and the input that reach a kernel
take few enough, evenly spaced values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dfqbench.quant.fake_quantize_modules import FakeQuantize
from dfqbench.quant.scheme import OFF, Granularity, Placement, Scheme
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
        float_layers: layers with an operand off such levels, each with the operand (`conv1: input`).
        violations: operands that the scheme quantizes and that are off their levels; empty in a valid student.
    """

    macs_quantized: int = 0
    macs_total: int = 0
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


class _OperandCheck(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the multiply-accumulates of a pass in `coverage`; `stack` holds the names of the layers that now run.

    `bits` returns the widths that count as quantized for a layer's weight and input, by its name; 32: none does.
    `granularity` is that of the weights.
    """

    def __init__(
        self,
        bits: Callable[[str], tuple[int, int]],
        granularity: Granularity,
        coverage: Coverage,
        stack: list[str],
        images: int,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bits = bits
        self._granularity = granularity
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
        if weight_bits == OFF or not weight_is_quantized(product.weight, weight_bits, self._granularity):
            in_float.append("weight")
        if input_bits == OFF or not is_quantized(product.input, input_bits):
            in_float.append("input")
        coverage.macs_total += macs
        coverage.macs_quantized += 0 if in_float else macs
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
    granularity = scheme.protocol.weights.granularity
    check = _OperandCheck(lambda _: (scheme.w_bits, scheme.a_bits), granularity, coverage, stack, 1)
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
    coverage, granularity = Coverage(), student.scheme.protocol.weights.granularity
    for operand in student.operands:
        if operand.role == "weight":
            weight = student.network.get_submodule(operand.name).weight
            if not isinstance(weight, Tensor) or not weight_is_quantized(weight, operand.bits, granularity):
                coverage.violations.append(f"weight {operand.name}")
    stack: list[str] = []
    check = _OperandCheck(partial(expected_bits, student), granularity, coverage, stack, images.shape[0])
    seen = student.images_seen
    with _hooked(student, stack, coverage.violations), check:
        student(images)
    student.images_seen = seen
    for entry in coverage.float_layers:
        name, _, in_float = entry.rpartition(": ")
        if "input" in in_float and name in student.layers and student.layers[name].input != OFF:
            coverage.violations.append(f"input of {name}")
    quantizers = student.activation_quantizers()
    without_range = [quantizer.name for quantizer in quantizers if int(quantizer.batches) == 0]
    coverage.violations += [f"activation {name} (its range saw no batch)" for name in without_range]
    missing = {operand.name for operand in student.operands if operand.role == "activation"}
    missing -= {quantizer.name for quantizer in quantizers}
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


def most_levels_per_channel(weight: Tensor) -> int:
    """Return the largest number of distinct values in any channel of a weight (out, ...) without a graph."""
    rows = weight.reshape(weight.shape[0], -1)
    if rows.shape[1] == 0:
        return 0
    ordered = rows.sort(dim=1).values
    changes = (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1)
    return int(changes.max()) + 1
