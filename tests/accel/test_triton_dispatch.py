"""Which calls of an operator the Triton forms compute, and which its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from dfqbench.accel import backend
from dfqbench.quant.batch_norm import batch_norm_act
from dfqbench.quant.fake_quantize import fake_quantize, fake_quantize_channels
from dfqbench.quant.integer_conv import integer_conv2d
from dfqbench.quant.operators import operator
from dfqbench.synth.generators import standardize
from dfqbench.synth.moments import batch_norm_stats
from dfqbench.synth.sub_pixel import sub_pixel_norm


def channels_last(*size: int) -> Tensor:
    return torch.randn(size).contiguous(memory_format=torch.channels_last)


def of_batch_norm(x: Tensor, residual: Tensor | None = None, *, affine: bool = True) -> tuple[Any, ...]:
    ones, zeros = torch.ones(x.shape[1], dtype=x.dtype), torch.zeros(x.shape[1], dtype=x.dtype)
    return x, residual, *((ones, zeros) if affine else (None, None)), zeros, ones, 1e-5, torch.inf


X = channels_last(2, 16, 4, 4)
CONTIGUOUS = X.contiguous()
RANGE = torch.tensor(2.0), torch.tensor(-3.0)
WEIGHT = torch.randn(16, 16, 3, 3)


def of_conv(x: Tensor = X, weight: Tensor = WEIGHT, *geometry: int, groups: int = 1) -> tuple[Any, ...]:
    """Geometry: stride, padding and dilation."""
    return x, weight, RANGE[0], RANGE[0], *([number] * 2 for number in geometry or (1, 1, 1)), groups


SUPPORTED: dict[Any, tuple[Any, ...]] = {
    fake_quantize: (X, *RANGE, 4),
    fake_quantize_channels: (WEIGHT, 4),
    batch_norm_act: of_batch_norm(X, X),
    batch_norm_stats: (X,),
    sub_pixel_norm: (X, torch.ones(1, 4), torch.zeros(1, 4), 1e-5, 0.2),
    standardize: (X, 1e-5),
    integer_conv2d: of_conv(),
}
REFUSED: list[tuple[Any, tuple[Any, ...]]] = [
    (fake_quantize, (X.double(), *RANGE, 4)),
    (fake_quantize, (X.bfloat16(), *RANGE, 4)),
    (fake_quantize, (X, RANGE[0].double(), RANGE[1], 4)),
    (fake_quantize, (X[:, :8], *RANGE, 4)),
    (fake_quantize, (X[:0], *RANGE, 4)),
    (fake_quantize, (X, torch.ones(16, 1, 1), torch.zeros(16, 1, 1), 4)),
    (fake_quantize_channels, (WEIGHT.double(), 4)),
    (fake_quantize_channels, (WEIGHT[:, ::2], 4)),
    (batch_norm_act, of_batch_norm(X.double())),
    (batch_norm_act, of_batch_norm(CONTIGUOUS)),
    (batch_norm_act, of_batch_norm(channels_last(2, 3, 4, 4))),
    (batch_norm_act, of_batch_norm(X[:0])),
    (batch_norm_act, of_batch_norm(X, affine=False)),
    (batch_norm_act, of_batch_norm(X, torch.randn(2, 16, 1, 1))),
    (batch_norm_act, of_batch_norm(X, X.bfloat16())),
    (batch_norm_stats, (X.double(),)),
    (batch_norm_stats, (CONTIGUOUS,)),
    (batch_norm_stats, (channels_last(2, 3, 4, 4),)),
    (batch_norm_stats, (torch.randn(2, 16, 4),)),
    (sub_pixel_norm, (X.double(), *(torch.ones(1, 4, dtype=torch.float64),) * 2, 1e-5, 0.2)),
    (sub_pixel_norm, (CONTIGUOUS, torch.ones(1, 4), torch.zeros(1, 4), 1e-5, 0.2)),
    (sub_pixel_norm, (channels_last(2, 4, 4, 4), torch.ones(1, 1), torch.zeros(1, 1), 1e-5, 0.2)),
    (standardize, (X.double(), 1e-5)),
    (integer_conv2d, of_conv(X.double())),
    (integer_conv2d, of_conv(X, WEIGHT.double())),
    (integer_conv2d, of_conv(CONTIGUOUS)),
    (integer_conv2d, of_conv(X[:0])),
    (integer_conv2d, of_conv(X, torch.randn(128, 16, 3, 3))),
    (integer_conv2d, of_conv(X, WEIGHT.transpose(0, 1))),
    (integer_conv2d, of_conv(X, torch.randn(16, 16, 1, 1))),
    (integer_conv2d, of_conv(X, WEIGHT, 2, 1, 1)),
    (integer_conv2d, of_conv(X, WEIGHT, 1, 0, 1)),
    (integer_conv2d, of_conv(X, WEIGHT, 1, 1, 2)),
    (integer_conv2d, of_conv(X, WEIGHT[:, :4], groups=4)),
]
NAMES = [op.__name__ for op in SUPPORTED]


@pytest.fixture(scope="module")
def forms() -> dict[str, Any]:
    """The functions registered for CUDA, by the operator's name."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from dfqbench.accel.triton import batch_norm_act, conv, fake_quantize, statistics, sub_pixel

    modules = batch_norm_act, conv, fake_quantize, statistics, sub_pixel
    attributes = [pair for module in modules for pair in vars(module).items()]
    return {name.removesuffix("_form"): value for name, value in attributes if name.endswith("_form")}


@pytest.fixture
def kernels_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_enabled", True)


def as_list(result: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def is_of_form(function: Any, args: tuple[Any, ...]) -> bool:
    """Check, by its node in autograd's graph, whether a form or a definition computed a result."""
    x, *rest = args
    node = type(as_list(function(x.detach().requires_grad_(), *rest))[0].grad_fn)
    return "accel" in getattr(getattr(node, "_forward_cls", None), "__module__", "")


@pytest.mark.usefixtures("interpreter", "kernels_in_use")
@pytest.mark.parametrize("op", SUPPORTED, ids=NAMES)
def test_forms_compute_what_they_support(monkeypatch: pytest.MonkeyPatch, forms: dict[str, Any], op: Any) -> None:
    form, args = forms[op.__name__], SUPPORTED[op]
    assert is_of_form(form, args)
    assert not is_of_form(op, args)  # tensors of the CPU
    monkeypatch.setattr(backend, "_enabled", False)
    assert not is_of_form(form, args)


@pytest.mark.usefixtures("kernels_in_use")
@pytest.mark.parametrize(("op", "args"), REFUSED, ids=[op.__name__ for op, _ in REFUSED])
def test_definition_computes_what_a_form_does_not_support(forms: dict[str, Any], op: Any, args: Any) -> None:
    form = forms[op.__name__]
    assert not is_of_form(form, args)
    for a, b in zip(as_list(form(*args)), as_list(op.__wrapped__(*args)), strict=True):
        assert torch.equal(a, b)


def test_forms_are_registered_for_cuda_only(forms: dict[str, Any]) -> None:
    assert set(forms) == set(NAMES)
    for name in NAMES:
        for key, expected in (("CUDA", True), ("AutogradCUDA", True), ("CPU", False), ("AutogradCPU", False)):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dfqbench::{name}", key) is expected


def on_fake_cuda(mode: FakeTensorMode, args: tuple[Any, ...]) -> list[Any]:
    """Return arguments whose tensors are of a GPU for the dispatcher, and hold no numbers."""
    with mode:
        return [
            torch.empty_strided(arg.shape, arg.stride(), dtype=arg.dtype, device="cuda", requires_grad=index == 0)
            if isinstance(arg, Tensor)
            else arg
            for index, arg in enumerate(args)
        ]


@pytest.mark.parametrize("op", SUPPORTED, ids=NAMES)
def test_definition_computes_on_a_gpu_while_kernels_are_not_in_use(forms: dict[str, Any], op: Any) -> None:
    assert op.__name__ in forms
    with FakeTensorMode() as mode:
        results = as_list(op(*on_fake_cuda(mode, SUPPORTED[op])))
    for a, b in zip(results, as_list(op.__wrapped__(*SUPPORTED[op])), strict=True):
        assert (a.device.type, a.shape, a.dtype) == ("cuda", b.shape, b.dtype)


def test_register_checks_backend_and_supports_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from dfqbench.accel.triton.launch import register

    @operator
    def dispatch_of_a_test(x: Tensor, number: float) -> Tensor:
        return x * number

    register(
        dispatch_of_a_test,
        lambda x, number: x.ndim == 1 and number > 0,
        lambda x, number: x.new_zeros(len(x), round(number)),
    )

    with FakeTensorMode() as mode:
        vector, matrix = on_fake_cuda(mode, (torch.zeros(3), torch.zeros(3, 3)))
        monkeypatch.setattr(backend, "_enabled", True)
        assert dispatch_of_a_test(vector, 2.0).shape == (3, 2)
        assert dispatch_of_a_test(vector, number=4.0).shape == (3, 4)
        assert dispatch_of_a_test(vector, -2.0).shape == (3,)
        assert dispatch_of_a_test(matrix, 2.0).shape == (3, 3)
        monkeypatch.setattr(backend, "_enabled", False)
        assert dispatch_of_a_test(vector, 2.0).shape == (3,)
    monkeypatch.setattr(backend, "_enabled", True)
    assert torch.equal(dispatch_of_a_test(torch.ones(3), 2.0), torch.full((3,), 2.0))
