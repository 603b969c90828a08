"""Coverage: the share of a student's multiply-accumulates whose operands are both quantized, measured on the operands.

A dispatch mode looks at the operands while the finished student runs, independently of what the rewriter says: a layer
counts only if the weight and the input that reach its kernel take few enough, evenly spaced values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dfqbench.quant.fake_quantize_modules import FakeQuantize
from dfqbench.quant.scheme import OFF, Placement
from dfqbench.quant.student import Student
from dfqbench.quant.trace import WEIGHTED

ATEN = torch.ops.aten
OUTSIDE = "(outside layers)"
"""Name of products that no convolution or linear layer computes (attention, say)."""


@dataclass(slots=True)
class Coverage:
    """What was measured.

    Attributes:
        macs_quantized: multiply-accumulates an image with both operands on quantization levels of the scheme's width.
        macs_total: all multiply-accumulates an image.
        float_layers: layers with an operand that is not, each with the operand (`conv1: input`).
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
        """Whether every quantized operand is on its levels."""
        return not self.violations


@dataclass(frozen=True, slots=True)
class _Product:
    """One matrix product or convolution: weight-like operand, input-like operand, multiply-accumulates."""

    weight: Tensor
    input: Tensor
    macs: int


def _convolution(args: tuple[Any, ...], out: Tensor) -> _Product:
    inputs, weight, transposed = args[0], args[1], bool(args[6])
    outer = inputs.numel() if transposed else out.numel()
    return _Product(weight, inputs, outer * weight[0].numel())


def _addmm(args: tuple[Any, ...], out: Tensor) -> _Product:
    return _Product(args[2].t(), args[1], out.numel() * args[1].shape[-1])


def _mm(args: tuple[Any, ...], out: Tensor) -> _Product:
    return _Product(args[1].transpose(-1, -2), args[0], out.numel() * args[0].shape[-1])


def _linear(args: tuple[Any, ...], out: Tensor) -> _Product:
    return _Product(args[1], args[0], out.numel() * args[0].shape[-1])


PRODUCTS: dict[Any, Callable[[tuple[Any, ...], Tensor], _Product]] = {
    ATEN.convolution.default: _convolution,
    ATEN.addmm.default: _addmm,
    ATEN.mm.default: _mm,
    ATEN.bmm.default: _mm,
    ATEN.linear.default: _linear,
}


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, student: Student, coverage: Coverage, stack: list[str], images: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._student = student
        self._coverage = coverage
        self._stack = stack
        self._images = images

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            self._count(PRODUCTS[func](args, out))
        return out

    def _count(self, product: _Product) -> None:
        name = self._stack[-1] if self._stack else OUTSIDE
        macs = product.macs // self._images
        self._coverage.macs_total += macs
        missing = self._operands_in_float(name, product)
        if missing:
            entry = f"{name}: {' and '.join(missing)}"
            if entry not in self._coverage.float_layers:
                self._coverage.float_layers.append(entry)
        else:
            self._coverage.macs_quantized += macs

    def _operands_in_float(self, name: str, product: _Product) -> list[str]:
        weight_bits, input_bits = expected_bits(self._student, name)
        missing = []
        if weight_bits == OFF or name == OUTSIDE or most_levels_per_channel(product.weight) > 2**weight_bits:
            missing.append("weight")
        if input_bits == OFF or not is_quantized(product.input, input_bits):
            missing.append("input")
        return missing


def expected_bits(student: Student, name: str) -> tuple[int, int]:
    """Return the widths that count as quantized for a layer's weight and input; 32: nothing does.

    Under a protocol that quantizes activation outputs the scheme names no input; one counts where it nevertheless
    lies on levels of the scheme's width.
    """
    scheme = student.scheme
    layer = student.layers.get(name)
    if layer is None:
        return scheme.w_bits, scheme.a_bits
    if scheme.protocol.placement is Placement.ACTIVATION_OUTPUT:
        return layer.weight, scheme.a_bits
    return layer.weight, layer.input


@contextmanager
def _named_layers(network: nn.Module, stack: list[str]) -> Iterator[None]:
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, WEIGHTED):
            handles.append(module.register_forward_pre_hook(lambda _m, _args, name=name: stack.append(name)))
            handles.append(module.register_forward_hook(lambda _m, _args, _out: stack.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _checked_activations(student: Student, violations: list[str]) -> Iterator[None]:
    def check(module: nn.Module, _args: Any, out: Tensor) -> None:
        name = f"activation {module.name}"
        if name not in violations and isinstance(module, FakeQuantize) and not is_quantized(out, module.bits):
            violations.append(name)

    handles = [quantizer.register_forward_hook(check) for quantizer in student.activation_quantizers()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    for operand in student.operands:
        if operand.kind == "weight":
            weight = student.network.get_submodule(operand.name).weight
            if not isinstance(weight, Tensor) or most_levels_per_channel(weight) > 2**operand.bits:
                coverage.violations.append(f"weight {operand.name}")
    stack: list[str] = []
    seen = student.images_seen
    with (
        _named_layers(student.network, stack),
        _checked_activations(student, coverage.violations),
        _Watch(student, coverage, stack, images.shape[0]),
    ):
        student(images)
    student.images_seen = seen
    unseen = [q.name for q in student.activation_quantizers() if int(q.batches) == 0]
    coverage.violations += [f"activation {name} (its range saw no batch)" for name in unseen]
    missing = {operand.name for operand in student.operands if operand.kind == "activation"}
    missing -= {quantizer.name for quantizer in student.activation_quantizers()}
    coverage.violations += [f"activation {name} (not in the network)" for name in sorted(missing)]
    return coverage


SAMPLE = 1 << 16
"""Elements looked at first; a tensor in float shows itself within these."""
TOLERANCE = 0.05
"""Largest distance from a level, in steps; float32 rounding stays far below, unquantized values do not."""


def distinct_levels(values: Tensor, limit: int) -> Tensor | None:
    """Sorted distinct values of a tensor, or None when there are more than `limit`.

    Args:
        values: any shape, without a graph.
        limit: most distinct values of interest.
    """
    flat = values.reshape(-1)
    stride = max(1, flat.numel() // SAMPLE)
    levels: Tensor = torch.unique(flat[::stride])
    if levels.numel() > limit:
        return None
    if stride == 1:
        return levels
    # The rest is only compared with the levels seen: far cheaper than sorting it.
    nearest = torch.searchsorted(levels, flat).clamp_max(levels.numel() - 1)
    others = flat[levels[nearest] != flat]
    levels = torch.unique(torch.cat((levels, torch.unique(others))))
    return levels if levels.numel() <= limit else None


def is_quantized(values: Tensor, bits: int) -> bool:
    """Check that a tensor takes at most 2^bits values, all on that many evenly spaced levels.

    Args:
        values: any shape, without a graph; non-finite values are on no level.
        bits: bit-width.
    """
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


def most_levels_per_channel(weight: Tensor) -> int:
    """Largest number of distinct values in any slice of dimension 0.

    Args:
        weight: (out, ...), without a graph.
    """
    rows = weight.reshape(weight.shape[0], -1)
    if rows.shape[1] == 0:
        return 0
    ordered = rows.sort(dim=1).values
    changes = (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1)
    return int(changes.max()) + 1
