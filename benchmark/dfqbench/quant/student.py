"""Students: a quantized copy of a teacher, and its form on disk."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from dfqbench.api.card import ModelCard
from dfqbench.api.errors import InputError, Invalid, PluginError
from dfqbench.quant.batch_norm import remove_upper_bound
from dfqbench.quant.fake_quantize_modules import FakeQuantize, FakeQuantizedActivation, FakeQuantizeWeight
from dfqbench.quant.integer_conv import QuantizedConv2d
from dfqbench.quant.observers import Observer
from dfqbench.quant.rewrite import LayerBits, QuantizedOperand, rewrite
from dfqbench.quant.scheme import Scheme

STATE_FILE = "student.safetensors"
DESCRIPTION_FILE = "student.json"


class Student(nn.Module):
    """A quantized copy of a network.

    Weights are kept in float and rounded in every forward pass, so that the student can be trained. It is always in
    eval mode: BatchNorm uses its running statistics.

    Attributes:
        network: the rewritten network.
        scheme: what is quantized and how.
        operands: what is quantized in the network.
        layers: bit-widths of each layer by name, in order of execution.
        without_upper_bound: names of the graph's nodes whose ReLU6 was replaced by ReLU.
    """

    def __init__(
        self, network: nn.Module, scheme: Scheme, operands: list[QuantizedOperand], layers: dict[str, LayerBits]
    ) -> None:
        super().__init__()
        self.network = network
        self.scheme = scheme
        self.operands = operands
        self.layers = layers
        self.without_upper_bound: list[str] = []
        self._images_seen: Tensor
        # On the device, so that passes of a CUDA graph are counted.
        device = next((parameter.device for parameter in self.network.parameters()), None)
        self.register_buffer("_images_seen", torch.zeros((), dtype=torch.int64, device=device), persistent=False)
        modules = list(self.network.modules())
        self._quantizers = [m for m in modules if isinstance(m, FakeQuantize)]
        self._inner_activations = [m for m in modules if isinstance(m, FakeQuantizedActivation)]
        self._convolutions = [m for m in modules if isinstance(m, QuantizedConv2d)]
        self.train(False)

    def train(self, mode: bool = True) -> Student:  # noqa: ARG002 - torch's signature
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, C, H, W) in the teacher's normalised input space."""
        self._images_seen += images.shape[0]
        for module in self._inner_activations:
            module.restart()
        logits: Tensor = self.network(images)
        return logits

    @property
    def images_seen(self) -> int:
        """Images of all forward passes, for the cost account (reads the device)."""
        return int(self._images_seen)

    @images_seen.setter
    def images_seen(self, count: int) -> None:
        self._images_seen.fill_(count)

    def use_integer_convolutions(self, enabled: bool = True) -> None:
        """Switch convolutions on integers in bfloat16, for passes that will be differentiated."""
        for convolution in self._convolutions:
            convolution.integer = enabled

    @property
    def range_steps(self) -> int:
        """Batches from which the activation ranges were learned (reads the device)."""
        return max((int(quantizer.batches) for quantizer in self._quantizers), default=0)

    def attach_observers(self, rule: str) -> None:
        """Give every activation range an observer of a range rule such as `minmax`; one of the same rule is kept.

        Raises:
            UsageError: unknown rule.
        """
        for quantizer in self._quantizers:
            quantizer.attach_observer(rule)

    @contextmanager
    def observing(self, rule: str) -> Iterator[Student]:
        """Update the activation ranges by a rule (see `attach_observers`) in each forward pass of the block.

        Quantization stays active.
        """
        self.attach_observers(rule)
        for quantizer in self._quantizers:
            quantizer.observing = True
        try:
            yield self
        finally:
            for quantizer in self._quantizers:
                quantizer.observing = False

    def finished_state(self) -> dict[str, Tensor]:
        """Return parameters, buffers and ranges, without observers, which only training needs."""
        observers = tuple(f"{name}." for name, module in self.named_modules() if isinstance(module, Observer))
        return {name: value.detach() for name, value in self.state_dict().items() if not name.startswith(observers)}

    def activation_quantizers(self) -> list[FakeQuantize]:
        """Return the activations' `FakeQuantize` modules in the order of the network's modules."""
        return list(self._quantizers)

    @property
    def traced(self) -> fx.GraphModule:
        """The network, as the graph that the rewriter made of it.

        Raises:
            PluginError: the network was replaced by one without a graph.
        """
        if not isinstance(self.network, fx.GraphModule):
            raise PluginError("the student's network is no traced graph", "make the student with ctx.prepare(teacher)")
        return self.network

    def remove_upper_bounds(self, names: Iterable[str]) -> None:
        """Replace ReLU6 by ReLU at nodes of the graph, by name; a saved student keeps it.

        Raises:
            ValueError: there is no ReLU6 of this name.
        """
        for name in names:
            remove_upper_bound(self.traced, name)
            self.without_upper_bound.append(name)

    def quantized_weights(self) -> Iterator[tuple[str, nn.Parameter, FakeQuantizeWeight]]:
        """Yield each quantized layer's dotted name, its weight in float, and the module that rounds the weight."""
        for name, layer in self.network.named_modules():
            parametrizations: Any = getattr(layer, "parametrizations", {})
            if "weight" in parametrizations and isinstance(parametrizations.weight[0], FakeQuantizeWeight):
                yield name, parametrizations.weight.original, parametrizations.weight[0]


def float_weight(layer: nn.Module) -> nn.Parameter:
    """Return the weight of a convolution or linear layer of a student as its optimizer sees it, not rounded."""
    return _in_float(layer, "weight")


def float_bias(layer: nn.Module) -> nn.Parameter | None:
    """Return the bias of a convolution or linear layer of a student as its optimizer sees it; None if it has none."""
    return None if getattr(layer, "bias", None) is None else _in_float(layer, "bias")


def _in_float(layer: nn.Module, name: str) -> nn.Parameter:
    parts: Any = getattr(layer, "parametrizations", {})
    parameter: nn.Parameter = parts[name].original if name in parts else layer.get_parameter(name)
    return parameter


def prepare(teacher: nn.Module, scheme: Scheme, card: ModelCard) -> Student:
    """Make a student of a teacher: a rewritten copy whose parameters train, without activation ranges yet.

    Args:
        teacher: full-precision network; left as it is.
        scheme: what to quantize and how.
        card: the teacher's card.

    Returns:
        The student, on the teacher's device, in eval mode.

    Raises:
        Unavailable: the network does not fit the scheme's protocol.
    """
    network = copy.deepcopy(teacher).eval()
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    rewritten, operands, layers = rewrite(network, scheme, torch.zeros(1, *card.input_size, device=device))
    for parameter in rewritten.parameters():
        parameter.requires_grad_(True)
    rewritten.to(device).to(memory_format=torch.channels_last)
    return Student(rewritten, scheme, operands, layers)


def save_student(student: Student, folder: Path, model: Mapping[str, Any]) -> None:
    """Write a student as model reference, scheme and safetensors, without observers.

    Args:
        student: what to save.
        folder: an existing folder; files of an earlier student in it are replaced.
        model: the teacher's `ModelSpec.as_dict()`.
    """
    # Clones: safetensors refuses tied weights, which share memory.
    unique = {name: value.cpu().contiguous().clone() for name, value in student.finished_state().items()}
    facts: dict[str, Any] = {"model": dict(model), "scheme": student.scheme.as_dict()}
    if student.without_upper_bound:
        facts["without_upper_bound"] = student.without_upper_bound
    description = json.dumps(facts, indent=1, sort_keys=True)
    save_file(unique, folder / f"{STATE_FILE}.part")
    (folder / f"{DESCRIPTION_FILE}.part").write_text(description + "\n", encoding="utf-8")
    for name in (STATE_FILE, DESCRIPTION_FILE):
        (folder / f"{name}.part").replace(folder / name)


def load_student(
    path: Path | str,
    device: str | torch.device = "cpu",
    families: Mapping[str, str] | None = None,
    *,
    trusted: bool = False,
    model: Mapping[str, Any] | None = None,
) -> Student:
    """Load a student from the folder of an attempt.

    Args:
        path: the folder, with `student.json` and `student.safetensors`.
        device: the student's device.
        families: model families of plugins, `package.module:callable` by name.
        trusted: whether the description may name code of its own (`py:` references), which can then run anything.
        model: `ModelSpec.as_dict()` of the network that the description must name; None: any.

    Returns:
        The student, in eval mode.

    Raises:
        InputError: the folder holds no student, or its files do not fit each other.
        Invalid: the description names another network.
        Unavailable: the description names code and is not trusted.
    """
    from dfqbench.models.build import build_teacher
    from dfqbench.models.spec import ModelSpec

    folder = Path(path)
    try:
        description = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        state = load_file(folder / STATE_FILE, device=str(device))
        # Only the caller decides on trust, not the file.
        spec = dataclasses.replace(ModelSpec.from_dict(description["model"]), trusted=trusted)
        scheme = Scheme.from_dict(description["scheme"])
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no student ({error.filename} is missing)", "name an attempt folder"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise InputError(f"the student in {folder} cannot be read: {error}", "run its cell again") from error
    if model is not None and description["model"] != model:
        raise Invalid(f"the saved student's network, {spec.name} ({spec.ref}), is not its cell's, {model['name']}")
    student = prepare(build_teacher(spec, device, families), scheme, spec.card)
    try:
        student.remove_upper_bounds(map(str, description.get("without_upper_bound", [])))
        student.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the student in {folder} does not fit its description: {reason}", "run its cell again"
        ) from None
    return student
