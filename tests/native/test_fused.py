"""Convolutions with the block that follows, by the library for CPUs, against the passes one after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dfqbench.native import binding, convolve, fused, passes
from dfqbench.native.fused import Gradients, Layer
from tests.native.convolutions import assert_no_thread_changes, drawn
from torch import Tensor

NUMBERS = ((1, 1), (1, 1), (1, 1), 1)
CASES = (
    (3, 16, 16, 6, 7),
    (1, 16, 48, 1, 1),
    (2, 32, 16, 5, 5),
    (9, 64, 64, 8, 8),
    (40, 16, 16, 9, 30),
    (2, 64, 48, 3, 33),
    (1, 16, 32, 40, 2),
    (3, 80, 16, 7, 3),
    (2, 16, 80, 5, 6),
)
"""Samples, channels of input and output, height and width: strips of an image and of several, whole tiles and not,
fewer strips than parts of a sum and more; channels beyond which it goes one pass after another."""


def operands(case: tuple[int, ...]) -> dict[str, Any]:
    samples, channels, outer, height, width = case
    random = torch.Generator().manual_seed(9)
    return {
        "x": drawn(samples, channels, height, width, seed=1),
        "weight": drawn(outer, channels, 3, 3, seed=2) / 8,
        "layer": Layer(*(torch.rand(outer, generator=random) + 0.5 for _ in range(4))),
        "residual": drawn(samples, outer, height, width, seed=3),
        "grad": drawn(samples, outer, height, width, seed=4),
    }


GRID = (torch.tensor(3.0), torch.tensor(8.0), -8.0, 7.0)


def backward(given: dict[str, Any], y: Tensor, residual: Tensor | None, **options: Any) -> Gradients:
    return fused.backward(given["grad"], given["x"], given["weight"], y, given["layer"], residual=residual, **options)


def one_after_another(given: dict[str, Any], residual: Tensor | None) -> tuple[Tensor, Tensor, Gradients]:
    layer: Layer = given["layer"]
    y = convolve.convolved(given["x"], given["weight"])
    out = passes.rounded_block(y, layer[:2], GRID, residual=residual)
    inner, to_residual, *sums = passes.affine_backward(
        y, given["grad"], layer[:2], layer.mean, inverse=layer.inverse, residual=residual, ceiling=torch.inf
    )
    to_x, to_weight = convolve.gradients(inner, given["x"], given["weight"], (True, True))
    return y, out, Gradients(to_x, to_residual, to_weight, *sums)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_values_and_gradients_are_those_of_the_passes_one_after_another(
    library: str, case: tuple[int, ...], add: bool, order: torch.memory_format
) -> None:
    given = operands(case)
    given["weight"] = given["weight"].contiguous(memory_format=order)
    residual = given["residual"] if add else None
    assert fused.fits(given["x"], given["weight"], NUMBERS)
    wanted_y, wanted_out, wanted = one_after_another(given, residual)
    y, out = fused.forward(given["x"], given["weight"], given["layer"], GRID, residual=residual)
    assert torch.equal(y, wanted_y)
    assert torch.equal(out, wanted_out)
    assert 1 < len(out.unique()) <= 16
    found = backward(given, y, residual)
    for one, other in zip(found[:3], wanted[:3], strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)
    assert found.x is not None
    assert found.weight is not None
    assert found.x.is_contiguous(memory_format=torch.channels_last)
    assert found.weight.is_contiguous(memory_format=order)
    onto = backward(given, y, residual, onto=torch.zeros_like(given["x"]).contiguous(memory_format=torch.channels_last))
    assert onto.x is not None
    assert torch.equal(onto.x, found.x)
    for one, other in zip(found[3:], wanted[3:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("channels", [16, 80])
def test_what_is_not_wanted_is_left_out(library: str, channels: int) -> None:
    given = operands((3, channels, 16, 6, 7))
    y, _, wanted = one_after_another(given, given["residual"])
    for to_x, to_weight in ((True, False), (False, True), (False, False)):
        found = backward(given, y, given["residual"], wanted=(to_x, to_weight))
        for one, other, is_wanted in zip(found, wanted, (to_x, True, to_weight, True, True), strict=True):
            assert (one is not None) == is_wanted
            torch.testing.assert_close(one, other if is_wanted else None, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [16, 80])
def test_a_gradient_is_added_where_it_is_wanted(library: str, channels: int) -> None:
    given = operands((3, channels, 16, 6, 7))
    y, _, wanted = one_after_another(given, None)
    there = drawn(3, channels, 6, 7, seed=8)
    before = there.clone()
    found = backward(given, y, None, onto=there)
    assert found.x is there
    assert wanted.x is not None
    assert torch.equal(there, before + wanted.x)
    with pytest.raises(ValueError, match="is not as a map"):
        backward(given, y, None, onto=there[:1])
    with pytest.raises(ValueError, match="is not as a map"):
        backward(given, y, None, onto=there.contiguous())


def test_maps_in_another_order_or_with_a_noted_sign_are_taken(library: str) -> None:
    given = operands((3, 16, 16, 6, 7))
    y, out, wanted = one_after_another(given, given["residual"])
    residual = torch._neg_view(-given["residual"].contiguous())
    found = fused.forward(given["x"], given["weight"], given["layer"], GRID, residual=residual)
    assert all(torch.equal(one, other) for one, other in zip(found, (y, out), strict=True))
    given["grad"] = torch._neg_view(-given["grad"].contiguous())
    gradients = backward(given, y, residual)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_what_is_not_a_number_passes_as_in_torch(library: str) -> None:
    given = operands((2, 16, 16, 9, 9))
    y = one_after_another(given, None)[0]
    y[0, 3, 4, 4], y[1, 5, 0, 0], y[1, 5, 8, 8] = torch.nan, torch.inf, -torch.inf
    given["weight"] = torch.zeros_like(given["weight"])
    given["weight"][:, :, 1, 1] = torch.eye(16)
    found = backward(given, y, None)
    wanted = passes.affine_backward(
        y, given["grad"], given["layer"][:2], given["layer"].mean, inverse=given["layer"].inverse, ceiling=torch.inf
    )
    assert found.x is not None
    torch.testing.assert_close(found.x, wanted[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(found.scale.isnan(), wanted[2].isnan())
    assert int(found.scale.isnan().sum()) == 2
    torch.testing.assert_close(found.shift, wanted[3], rtol=1e-5, atol=1e-4)


def test_nothing_passes_where_the_sum_is_zero(library: str) -> None:
    given = operands((2, 16, 16, 9, 9))
    given["layer"] = given["layer"]._replace(shift=torch.zeros(16))
    y = torch.zeros_like(given["grad"])
    found = backward(given, y, y)
    assert all(one is not None and not one.any() for one in found)


def test_factors_may_be_of_another_type(library: str) -> None:
    given = operands((3, 16, 32, 6, 7))
    y, _, wanted = one_after_another(given, None)
    found = backward(given | {"layer": Layer(*(one.double() for one in given["layer"]))}, y, None)
    assert found.scale.dtype == found.shift.dtype == torch.float32
    torch.testing.assert_close(found.scale, wanted.scale, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("case", [(40, 16, 16, 9, 30), (9, 64, 64, 8, 8)])
def test_no_result_depends_on_how_many_threads_there_are(library: str, case: tuple[int, ...]) -> None:
    given = operands(case)

    def compute() -> list[Tensor | None]:
        y, out = fused.forward(given["x"], given["weight"], given["layer"], GRID, residual=given["residual"])
        return [y, out, *backward(given, y, given["residual"])]

    assert_no_thread_changes(compute)


def test_operands_of_another_size_are_refused(library: str) -> None:
    given = operands((3, 16, 32, 6, 7))
    y = one_after_another(given, None)[0]
    x, weight, layer = given["x"], given["weight"], given["layer"]
    with pytest.raises(ValueError, match="does not fit"):
        fused.forward(x, weight, layer, GRID, residual=given["residual"][:1])
    with pytest.raises(ValueError, match="does not fit"):
        fused.forward(x, weight, Layer(*(one[:16] for one in layer)), GRID)
    for wrong in ({"grad": given["grad"][:, :16]}, {"layer": Layer(*(one[:16] for one in layer))}):
        with pytest.raises(ValueError, match="does not fit"):
            backward(given | wrong, y, None)
    with pytest.raises(ValueError, match="does not fit"):
        backward(given, y[:1], None)
    with pytest.raises(ValueError, match="does not fit"):
        backward(given | {"x": x[:1]}, y, None)
    with pytest.raises(ValueError, match="does not fit"):
        backward(given | {"weight": weight[:16]}, y, None)
    with pytest.raises(ValueError, match="does not fit"):
        backward(given | {"x": drawn(3, 32, 6, 7)}, y, None)


def test_what_does_not_fit(library: str) -> None:
    x, weight = drawn(2, 16, 5, 5), drawn(32, 16, 3, 3)
    assert fused.fits(x, weight, NUMBERS)
    assert not fused.fits(x, drawn(3, 16, 3, 3), NUMBERS)
    assert not fused.fits(x, weight, ((2, 2), *NUMBERS[1:]))
    assert not fused.fits(x.contiguous(), weight, NUMBERS)
    assert not fused.fits(x.bfloat16(), weight, NUMBERS)
    gaps = torch.empty(32, 32, 3, 3)[:, ::2]
    assert convolve.fits(x, gaps, NUMBERS)
    assert not fused.fits(x, gaps, NUMBERS)
    assert fused.fits_channels(16, 32)
    assert not fused.fits_channels(3, 16)
    assert not fused.fits_channels(16, 3)
    with binding.using(None):
        assert not fused.fits(x, weight, NUMBERS)


def test_kernels_for_gpus_have_no_such_function(kernels: None) -> None:
    x, weight = drawn(2, 16, 5, 5), drawn(32, 16, 3, 3)
    assert convolve.fits(x, weight, NUMBERS)
    assert not fused.fits(x, weight, NUMBERS)
