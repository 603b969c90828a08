"""Students: a quantized copy of a teacher, and its form on disk."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfqbench.api.card import ModelCard
from dfqbench.api.errors import InputError
from dfqbench.native.autocast import convolutions, torchs_convolutions
from dfqbench.quant.blocks import join_blocks
from dfqbench.quant.frozen import freeze_batchnorm
from dfqbench.quant.grid_conv import GridConvolutions
from dfqbench.quant.join_units import join_units
from dfqbench.quant.quantizers import ActivationQuantizer, QuantizedActivation
from dfqbench.quant.ranges import RangeRule
from dfqbench.quant.rewrite import Claim, LayerBits, layer_bits, rewrite
from dfqbench.quant.scheme import Scheme
from dfqbench.quant.slices import keep_order_of_slices

STATE_FILE = "student.safetensors"
DESCRIPTION_FILE = "student.json"


class Student(nn.Module):
    """A network whose claimed operands lie on grids.

    Weights are kept in float and rounded in every forward pass, so that the student can be trained; BatchNorm uses its
    running statistics always: `train()` leaves the student in eval mode.

    Attributes:
        network: the rewritten network.
        scheme: what is quantized and how.
        claims: the operands that are on a grid.
        layers: claimed widths of each layer by name, in order of execution.
        grid_convolutions: whether passes that will be differentiated compute their convolutions on the grids' integers
            in bfloat16.
    """

    def __init__(self, network: nn.Module, scheme: Scheme, claims: list[Claim], layers: dict[str, LayerBits]) -> None:
        super().__init__()
        self.network = network
        self.scheme = scheme
        self.claims = claims
        self.layers = layers
        # On the device, so that the passes of a CUDA graph count, too.
        device = next((parameter.device for parameter in network.parameters()), None)
        self._images_seen: Tensor
        self.register_buffer("_images_seen", torch.zeros((), dtype=torch.int64, device=device), persistent=False)
        self.grid_convolutions = False
        self._quantizers = [m for m in network.modules() if isinstance(m, ActivationQuantizer)]
        self._restarted = [m for m in network.modules() if isinstance(m, QuantizedActivation)]
        self.train(False)

    def train(self, mode: bool = True) -> Student:  # noqa: ARG002 - torch's signature
        """Stays in eval mode: BatchNorm statistics and dropout are frozen in every method of this field."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, C, H, W) in the teacher's normalised input space."""
        self._images_seen += images.shape[0]
        for module in self._restarted:
            module.restart()
        on_grids = self.grid_convolutions and torch.is_grad_enabled()
        for quantizer in self._quantizers:
            quantizer.keep_codes = on_grids
        with self._convolutions(images.device):
            logits: Tensor = self.network(images)
        return logits

    def _convolutions(self, device: torch.device) -> AbstractContextManager[Any]:
        """How convolutions are computed: in evaluation, and whatever else is not differentiated, by torch."""
        if not torch.is_grad_enabled():
            return torchs_convolutions()
        return GridConvolutions() if self.grid_convolutions else convolutions(device)

    @property
    def images_seen(self) -> int:
        """Images that went through (reads the device)."""
        return int(self._images_seen)

    @images_seen.setter
    def images_seen(self, count: int) -> None:
        self._images_seen.fill_(count)

    @property
    def range_steps(self) -> int:
        """Batches that the activation ranges have seen (reads the device); 0 without activation quantizers."""
        return max((int(quantizer.range.steps) for quantizer in self._quantizers), default=0)

    @contextmanager
    def observing(self, rule: RangeRule) -> Iterator[Student]:
        """Within it each forward pass also updates the activation ranges; quantization stays active.

        Args:
            rule: how ranges follow batches.
        """
        for quantizer in self._quantizers:
            quantizer.rule = rule
        try:
            yield self
        finally:
            for quantizer in self._quantizers:
                quantizer.rule = None

    def grids(self) -> tuple[int, ...]:
        """Where the activation grids lie in memory: what is computed with a grid that was replaced is out of date."""
        return tuple(part.data_ptr() for q in self._quantizers for part in (q.scale, q.shift))

    def activation_quantizers(self) -> list[ActivationQuantizer]:
        """Every activation quantizer, in the order of the network's modules."""
        return list(self._quantizers)


def prepare(teacher: nn.Module, scheme: Scheme, card: ModelCard) -> Student:
    """Makes a student of a teacher: a rewritten copy whose parameters train, with activation ranges yet to be learned.

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
    example = torch.zeros(1, *card.input_size, device=device)
    traced, claims = rewrite(network, scheme, example)
    traced.to(device)
    from dfqbench.quant.probe import probe

    # Of the network as it is written: nothing is joined yet.
    layers = layer_bits(probe(traced, example), scheme)
    freeze_batchnorm(traced)
    join_blocks(traced)
    keep_order_of_slices(traced)
    join_units(traced)
    for parameter in traced.parameters():
        parameter.requires_grad_(True)
    traced.to(memory_format=torch.channels_last)
    return Student(traced, scheme, claims, layers)


def save_student(student: Student, folder: Path, model: Mapping[str, Any]) -> None:
    """Writes a student as reference, scheme and safetensors.

    Args:
        student: what to save.
        folder: an existing folder; files of an earlier student in it are replaced.
        model: the teacher's `ModelSpec.as_dict()`.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in student.state_dict().items()}
    # Tied weights would share memory, which safetensors refuses.
    unique = {name: value.clone() for name, value in state.items()}
    temporary = folder / f"{STATE_FILE}.part"
    save_file(unique, temporary)
    temporary.replace(folder / STATE_FILE)
    description = folder / f"{DESCRIPTION_FILE}.part"
    text = json.dumps({"model": dict(model), "scheme": student.scheme.as_dict()}, indent=1, sort_keys=True)
    description.write_text(text + "\n", encoding="utf-8")
    description.replace(folder / DESCRIPTION_FILE)


def load_student(
    path: Path | str,
    device: str | torch.device = "cpu",
    families: Mapping[str, str] | None = None,
    *,
    trusted: bool = False,
) -> Student:
    """Loads a student that a run has kept.

    Args:
        path: the folder of an attempt (it holds `student.json` and `student.safetensors`).
        device: where to put it.
        families: model families that plugins offer, `package.module:callable` by name.
        trusted: whether the folder's description may name code of its own (`py:` references); a folder from somebody
            else can then run anything.

    Returns:
        The student, in eval mode.

    Raises:
        InputError: the folder holds no student, or its files do not fit each other.
        Unavailable: the description names code, and is not trusted.
    """
    from dfqbench.models.build import build_teacher
    from dfqbench.targets.spec import ModelSpec

    folder = Path(path)
    try:
        description = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        state = load_file(folder / STATE_FILE, device=str(device))
        # Whatever the file says of itself: only the caller can say that it may name code.
        model = dataclasses.replace(ModelSpec.from_dict(description["model"]), trusted=trusted)
        scheme = Scheme.from_dict(description["scheme"])
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no student ({error.filename} is missing)", "name an attempt folder"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise InputError(f"the student in {folder} cannot be read: {error}", "run its cell again") from error
    student = prepare(build_teacher(model, device, families), scheme, model.card)
    try:
        student.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"the student in {folder} does not fit its description: {first}", "run its cell again"
        ) from None
    return student
