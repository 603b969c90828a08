"""Plugins that cheat or are careless, one for each way to get a number that is not what it says.

They can run in the test's own process; `process_cheats` has those that need a worker's. `CHEATS` has them by name.
"""

from __future__ import annotations

import gzip
import mmap
import os
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cheat_kit import Cheats, digits
from dfqbench.api import Batch, Context, Offer, SampleSource, hookimpl
from dfqbench.quant import parse_scheme, prepare

CHEATS = Cheats(__name__)
synthesizing, quantizing, sampling = CHEATS.synthesizing, CHEATS.quantizing, CHEATS.sampling


# --- students with another scheme than their cell's ---------------------------------------------------------------


def _calibrated(student: Any, source: SampleSource) -> Any:
    with torch.no_grad(), student.observing("minmax"):
        student(source.sample(64).images)
    return student


@quantizing
def eight_bits(teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Quantizes to 8 bits in every cell."""
    return _calibrated(prepare(teacher, parse_scheme("w8a8@gdfq"), ctx.card), source)


@quantizing
def no_bits(teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Leaves everything in float."""
    return _calibrated(prepare(teacher, parse_scheme("w32a32@gdfq"), ctx.card), source)


@quantizing
def other_protocol(teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Quantizes other tensors than the cell says."""
    return _calibrated(prepare(teacher, parse_scheme("w2a2@deploy"), ctx.card), source)


@quantizing
def relabelled(teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Quantizes to 8 bits and writes the cell's scheme on the student."""
    student = eight_bits(teacher, source, ctx)
    student.scheme = ctx.scheme
    return student


@quantizing
def widened(teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Widens the activations of a good student."""
    student = ctx.shared_quantize(teacher, source)
    for quantizer in student.activation_quantizers():
        quantizer.bits = 8
    return student


@quantizing
def float_network(teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Puts the teacher into the student."""
    student = ctx.shared_quantize(teacher, source)
    student.network = teacher
    return student


@quantizing
def teacher_itself(teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Returns the teacher."""
    return teacher


@quantizing
def own_module(teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Returns a module of its own that runs the teacher in float."""

    class Float(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.full = ctx.shared_quantize(teacher, source), teacher

        def forward(self, images: Tensor) -> Tensor:
            return self.full(images)  # type: ignore[no-any-return]

    return Float()


@quantizing
def by_batch_size(teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Is quantized for a handful of images, as checks use, and in float for more."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.full = ctx.shared_quantize(teacher, source), teacher

        def forward(self, images: Tensor) -> Tensor:
            return (self.student if len(images) < 20 else self.full)(images)  # type: ignore[no-any-return]

    return Branches()


@quantizing
def by_statistics(teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Is in float for images that look like the evaluation set's."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.full = ctx.shared_quantize(teacher, source), teacher

        def forward(self, images: Tensor) -> Tensor:
            natural = float(images.std()) < 10
            return (self.full if natural else self.student)(images)  # type: ignore[no-any-return]

    return Branches()


@quantizing
def student_class(teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Gives the student another forward pass."""
    student = ctx.shared_quantize(teacher, source)
    student.forward = teacher.forward  # type: ignore[method-assign]
    return student


# --- a teacher that is another one afterwards -----------------------------------------------------------------------


@synthesizing
def forward_in_train_mode(teacher: nn.Module, ctx: Context) -> None:
    """Runs one pass in train mode, which moves BatchNorm's statistics."""
    teacher.train()
    teacher(torch.randn(64, *ctx.card.input_size))
    teacher.eval()


@synthesizing
def left_in_train_mode(teacher: nn.Module, ctx: Context) -> None:
    """Forgets eval()."""
    teacher.train()


@synthesizing
def noise_on_weights(teacher: nn.Module, ctx: Context) -> None:
    """Adds noise to the weights."""
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))


@synthesizing
def through_data(teacher: nn.Module, ctx: Context) -> None:
    """Changes weights without raising their version."""
    for parameter in teacher.parameters():
        parameter.data.mul_(1.01)


@synthesizing
def other_storage(teacher: nn.Module, ctx: Context) -> None:
    """Gives a weight other memory."""
    parameter = next(teacher.parameters())
    parameter.data = parameter.data + 0.1


@synthesizing
def fine_tuned_teacher(teacher: nn.Module, ctx: Context) -> None:
    """Trains the teacher."""
    images = torch.randn(32, *ctx.card.input_size)
    for parameter in teacher.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.01)
    teacher(images).logsumexp(1).sum().backward()
    optimizer.step()
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)


@synthesizing
def other_module(teacher: nn.Module, ctx: Context) -> None:
    """Replaces an activation."""
    for module in teacher.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Identity())
                return
    raise RuntimeError("no activation module")


@synthesizing
def statistics_reset(teacher: nn.Module, ctx: Context) -> None:
    """Resets BatchNorm's variances."""
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(1.0)  # type: ignore[union-attr]


@synthesizing
def hook_left(teacher: nn.Module, ctx: Context) -> None:
    """Leaves a forward hook that changes the output."""
    teacher.register_forward_hook(lambda _module, _args, out: out * 2)


@synthesizing
def inner_hook_left(teacher: nn.Module, ctx: Context) -> None:
    """Leaves a hook on a layer."""
    next(m for m in teacher.modules() if isinstance(m, nn.Conv2d)).register_forward_pre_hook(lambda _m, args: args)


@synthesizing
def gradients_left_on(teacher: nn.Module, ctx: Context) -> None:
    """Leaves the parameters trainable."""
    teacher.requires_grad_(True)


@synthesizing
def half_precision(teacher: nn.Module, ctx: Context) -> None:
    """Casts the teacher."""
    teacher.double()


@synthesizing
def autocast_left_open(teacher: nn.Module, ctx: Context) -> None:
    """Leaves autocast on."""
    torch.set_autocast_enabled("cpu", True)


@synthesizing
def default_type_changed(teacher: nn.Module, ctx: Context) -> None:
    """Leaves another default type."""
    torch.set_default_dtype(torch.float64)


@synthesizing
def gradients_left_off(teacher: nn.Module, ctx: Context) -> None:
    """Leaves gradients off."""
    torch.set_grad_enabled(False)


@synthesizing
def parametrized(teacher: nn.Module, ctx: Context) -> None:
    """Registers a parametrization."""
    from torch.nn.utils import parametrize

    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    convolution = next(module for module in teacher.modules() if isinstance(module, nn.Conv2d))
    parametrize.register_parametrization(convolution, "weight", Twice())


@quantizing
def changes_teacher_late(teacher: nn.Module, source: SampleSource, ctx: Context) -> None:
    """Changes the teacher before the shared quantizer copies it."""
    noise_on_weights(teacher, ctx)


@sampling
def changes_teacher_when_drawn(teacher: nn.Module, batch: Batch) -> None:
    """Changes the teacher whenever images are drawn."""
    with torch.no_grad():
        next(teacher.parameters()).mul_(0.99)


# --- real data --------------------------------------------------------------------------------------------------------


@synthesizing
def opens(teacher: nn.Module, ctx: Context) -> None:
    """Opens the data."""
    Path(digits()).read_bytes()


@synthesizing
def opens_low(teacher: nn.Module, ctx: Context) -> None:
    """Opens the data with the lowest call."""
    os.read(os.open(digits(), os.O_RDONLY), 10)


@synthesizing
def gzip_opens(teacher: nn.Module, ctx: Context) -> None:
    """Opens the data through gzip."""
    with gzip.open(digits()) as file:
        file.read()


@synthesizing
def loads_digits(teacher: nn.Module, ctx: Context) -> None:
    """Asks scikit-learn."""

    from sklearn.datasets import load_digits

    load_digits()


@synthesizing
def mapped(teacher: nn.Module, ctx: Context) -> None:
    """Maps the data."""
    with open(digits(), "rb") as file:  # noqa: PTH123
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@synthesizing
def through_proc(teacher: nn.Module, ctx: Context) -> None:
    """Opens the data through /proc."""
    Path(f"/proc/self/root{digits()}").read_bytes()


@synthesizing
def symbolic_link(teacher: nn.Module, ctx: Context) -> None:
    """Opens the data through a link."""
    link = ctx.workdir / "link"
    link.symlink_to(digits())
    link.read_bytes()


@synthesizing
def hard_link(teacher: nn.Module, ctx: Context) -> None:
    """Gives the data another name."""
    os.link(digits(), ctx.workdir / "link")


@synthesizing
def in_a_thread(teacher: nn.Module, ctx: Context) -> None:
    """Opens the data in a thread."""
    errors: list[OSError] = []

    def read() -> None:
        try:
            Path(digits()).read_bytes()
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


# --- the source --------------------------------------------------------------------------------------


@sampling
def half_the_images(teacher: nn.Module, batch: Batch) -> Batch:
    """Gives fewer images than were asked for."""
    return Batch(batch.images[: len(batch.images) // 2])


@sampling
def autocast_while_drawing(teacher: nn.Module, batch: Batch) -> None:
    """Opens autocast when images are drawn."""
    torch.set_autocast_enabled("cpu", True)


@hookimpl
def dfqbench_methods() -> list[Offer]:
    return CHEATS.offers(globals())
