"""Checks of the images, of the teacher, and of randomness."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dfqbench.api import Batch, LiveSource, ModelCard, Precision, is_live
from dfqbench.quant import parse_scheme
from dfqbench.testing.conformance.findings import Fault
from dfqbench.testing.conformance.method_under_test import BATCH, MethodUnderTest
from dfqbench.testing.conformance.plugin_under_test import same
from dfqbench.testing.toys import toy_card, toy_network

MANY = 150
"""More images than a method usually makes: a fixed source repeats them, a live one makes more."""


def images(method: MethodUnderTest) -> None:
    """Check that images fit the card, are finite and carry no graph: three channels; one channel in bfloat16."""
    cases: list[tuple[dict[str, int], Precision]] = [
        ({}, Precision.FLOAT32),
        ({"classes": 5, "size": 16, "channels": 1}, Precision.MIXED_BFLOAT16),
    ]
    for arguments, precision in cases:
        card = toy_card(**arguments)
        run = method.synthesized(method.context(card=card, precision=precision), toy_network(**arguments))
        for name in ("sample", "state_dict", "load_state_dict"):
            if not callable(getattr(run.source, name, None)):
                raise Fault(
                    f"synthesize returned a {type(run.source).__name__} without `{name}`",
                    "return a dfqbench.synth.FixedSource, or a class with sample, state_dict and load_state_dict",
                )
        for size in (BATCH, MANY):
            _check_batch(method.drawn(run, size), card, size, "sample")
        if is_live(run.source):
            _check_training(run.source)
            _check_batch(run.source.train_step(BATCH), card, BATCH, "train_step")


def _check_training(source: LiveSource) -> None:
    """Check that a live source gives its batch and number of steps."""
    for name in ("batch_size", "training_steps"):
        value = getattr(source, name, None)
        if not isinstance(value, int) or value < 1:
            raise Fault(f"the live source has {name} = {value!r}", f"give it the attribute {name}: at least 1")


def _check_batch(batch: object, card: ModelCard, size: int, call: str) -> None:
    """Check what a call of a source returned."""
    if not isinstance(batch, Batch):
        raise Fault(f"{call} returned a {type(batch).__name__}", "return a dfqbench.api.Batch")
    _check_tensor(batch.images, (size, *card.input_size), f"images of {call}({size})")
    if batch.labels is not None:
        _check_labels(batch.labels, card, size, f"labels of {call}({size})")
    if batch.teacher_logits is not None:
        _check_tensor(batch.teacher_logits, (size, card.classes), f"teacher_logits of {call}({size})")


def _check_tensor(tensor: object, shape: tuple[int, ...], what: str) -> None:
    if not isinstance(tensor, Tensor):
        raise Fault(f"{what} are a {type(tensor).__name__}", "make them a torch.Tensor")
    if tuple(tensor.shape) != shape:
        raise Fault(
            f"{what} have shape {tuple(tensor.shape)}, not {shape}",
            "take (C, H, W) from ctx.card.input_size, classes from ctx.card.classes, and as many as asked for",
        )
    if tensor.dtype != torch.float32:
        raise Fault(f"{what} are {tensor.dtype}, not torch.float32", "convert them with .float()")
    if tensor.device.type != "cpu":
        raise Fault(f"{what} are on {tensor.device}, not on ctx.device", "make them with device=ctx.device")
    if tensor.requires_grad:
        raise Fault(f"{what} carry a graph, which keeps every step's memory", "hand out .detach()ed tensors")
    if not bool(torch.isfinite(tensor).all()):
        raise Fault(f"{what} are not finite", "look for a division by zero or a learning rate that is too high")


def _check_labels(labels: Tensor, card: ModelCard, size: int, what: str) -> None:
    if labels.is_floating_point():
        _check_tensor(labels, (size, card.classes), f"soft {what}")
        return
    if labels.dtype != torch.int64 or tuple(labels.shape) != (size,):
        raise Fault(
            f"{what} are {labels.dtype} of shape {tuple(labels.shape)}",
            f"make them int64 of shape ({size},), or soft float32 of shape ({size}, {card.classes})",
        )
    if int(labels.min()) < 0 or int(labels.max()) >= card.classes:
        raise Fault(f"{what} reach beyond the {card.classes} classes", "draw them below ctx.card.classes")


def teacher(method: MethodUnderTest) -> None:
    """Check that synthesis, drawing and quantization leave the teacher as it was."""
    network = toy_network()
    before = anatomy(network)
    run = method.synthesized(teacher=network)
    compare(before, anatomy(network), "synthesize")
    student = method.quantized(run, "", parse_scheme("w4a4@gdfq"))
    method.drawn(run)
    if is_live(run.source):
        run.source.train_step(BATCH, student)
    compare(before, anatomy(network), "drawing from the source, or quantize,")


def anatomy(network: nn.Module) -> dict[str, Any]:
    """Return copies of everything about a network that a plugin must leave alone."""
    modules, parameters = dict(network.named_modules()), dict(network.named_parameters())
    tensors = parameters | dict(network.named_buffers())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "weights or buffers": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "train/eval mode": {name: module.training for name, module in modules.items()},
        "hooks": {name: [len(getattr(module, hook)) for hook in hooks] for name, module in modules.items()},
        "requires_grad": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "gradients": {name: tensor.grad is None for name, tensor in parameters.items()},
        "modules": {name: [type(m).__name__, "forward" in vars(m)] for name, m in modules.items()},
    }


_REMEDIES = {
    "weights or buffers": "work on copy.deepcopy(teacher), or pass images through it in eval mode only",
    "train/eval mode": "leave the mode alone, or restore it in a `finally`",
    "hooks": "remove every hook that you register (`with BatchNormStatistics(teacher) as watch:` does)",
    "requires_grad": "differentiate in the images: torch.autograd.grad(loss, images)",
    "gradients": "differentiate in the images or the generator only: loss.backward(inputs=[...])",
    "modules": "change a copy.deepcopy(teacher) instead",
}


def compare(before: dict[str, Any], after: dict[str, Any], culprit: str) -> None:
    """Compare the anatomy of a teacher before and after a plugin's code."""
    for part, value in before.items():
        names = [name for name in value if not same(value[name], after[part].get(name))]
        names += [name for name in after[part] if name not in value]
        if names:
            shown = ", ".join(name or "the network itself" for name in names[:3])
            raise Fault(f"{culprit} changed the teacher's {part} ({shown})", _REMEDIES[part])


def seeds(method: MethodUnderTest) -> None:
    """Check that the same seed gives the same bits, and another seed other images."""
    first = method.drawn(method.synthesized()).images
    torch.rand(7)  # another cell may have drawn numbers in this process
    again = method.drawn(method.synthesized()).images
    if not torch.equal(first, again):
        raise Fault(
            "two runs with the same seed made different images",
            "draw from ctx.generator or seed your own with ctx.seed('name'); keep no state in modules or classes",
        )
    if torch.equal(first, method.drawn(method.synthesized(method.context(seed=1))).images):
        raise Fault(
            "runs with different seeds made the same images",
            "draw from ctx.generator or seed your own with ctx.seed('name'), not with a constant",
        )


def rng(method: MethodUnderTest) -> None:
    """Check that the caller's random numbers and torch's global settings are as before."""
    with unchanged("synthesize or the source"):
        run = method.synthesized()
        method.drawn(run)
        state = run.source.state_dict()
        run.source.load_state_dict(state)
        build = getattr(type(run.source), "from_state", None)
        if callable(build):
            build(state)
    if method.dry_run.random:
        raise Fault(
            f"importing the plugin changes {', '.join(method.dry_run.random)}",
            "seed nothing and set nothing while a module is imported; use ctx.generator inside synthesize",
        )


def random_state() -> dict[str, Any]:
    """Return global generators and settings that belong to the caller."""
    return {
        "Python's random numbers": random.getstate(),
        "NumPy's random numbers": [str(part) for part in np.random.get_state()],
        "torch's random numbers": torch.get_rng_state(),
        "torch's default dtype": torch.get_default_dtype(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "torch's cuDNN settings": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of what differs."""
    return [name for name, value in before.items() if not same(value, after[name])]


@contextmanager
def unchanged(what: str) -> Iterator[None]:
    """Check that the code in the block, called `what`, leaves the caller's generators and settings as they were."""
    before = random_state()
    yield
    changed = changes(before, random_state())
    if changed:
        # A failed check must not disturb what runs after it.
        torch.set_rng_state(before["torch's random numbers"])
        torch.set_default_dtype(before["torch's default dtype"])
        torch.set_grad_enabled(before["torch's grad mode"])
        torch.use_deterministic_algorithms(before["torch's deterministic mode"])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before["torch's cuDNN settings"]
        random.setstate(before["Python's random numbers"])
        raise Fault(
            f"{what} changed {', '.join(changed)} of the caller",
            "use ctx.generator, or put settings back in a `finally`; state_dict and load_state_dict draw nothing",
        )
