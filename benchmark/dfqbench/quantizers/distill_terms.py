"""The student's loss in `distill`: a sum of weighted terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dfqbench.api.batch import Batch
from dfqbench.api.errors import Unavailable
from dfqbench.api.precision import to_float32
from dfqbench.quant.trace import trace
from dfqbench.quantizers.distill_losses import adversarial, gap_entropy_loss, kd_loss, masked_cross_entropy
from dfqbench.quantizers.feature_alignment import alignment_loss, block_ends, map_sizes
from dfqbench.quantizers.grad_cam import explained_layer, grad_cam
from dfqbench.quantizers.layer_outputs import LayerOutput, LayerOutputs

if TYPE_CHECKING:
    from dfqbench.api.context import Context
    from dfqbench.quant import Student
    from dfqbench.quantizers.distill_params import DistillParams


@dataclass(frozen=True, slots=True)
class StudentPass:
    """A pass of teacher P and student Q over the same images: the input of the loss terms.

    Attributes:
        images: (N, C, H, W).
        targets: labels, int64 (N,) or soft (N, classes); the teacher's classes where the source has none.
        teacher_logits: z_P (N, classes).
        logits: z_Q (N, classes).
        teacher_layers: outputs of P's layers that a term reads, by name.
        layers: the same of Q.
    """

    images: Tensor
    targets: Tensor
    teacher_logits: Tensor
    logits: Tensor
    teacher_layers: Mapping[str, LayerOutput]
    layers: Mapping[str, LayerOutput]


@dataclass(frozen=True, slots=True)
class StudentTerm:
    """A weighted loss of the student. It reads no value from the device, so that a CUDA graph may repeat it.

    Attributes:
        name: for errors and tests.
        weight: factor; a term of weight 0 is left out.
        loss: returns the unweighted loss (0-d) of a pass.
        reads: names of the convolutions whose outputs it reads.
        perturbs: whether its gradient in the images makes the adversarial ones.
        on_perturbed: whether it counts on these, too.
        through_teacher: whether it differentiates the teacher.
    """

    name: str
    weight: float
    loss: Callable[[StudentPass], Tensor]
    reads: tuple[str, ...] = ()
    perturbs: bool = True
    on_perturbed: bool = True
    through_teacher: bool = False


class StudentLoss:
    """The sum of the terms of a recipe on a batch, and on adversarial images where the recipe has them.

    Attributes:
        terms: those with a weight.
    """

    def __init__(self, teacher: nn.Module, student: Student, params: DistillParams, ctx: Context) -> None:
        """Find the layers that the terms read.

        Args:
            teacher: full-precision network, in eval mode, parameters frozen; it has hooks only during a call.
            student: its student.
            params: hyper-parameters for the teacher's card.
            ctx: the host's side.

        Raises:
            Unavailable: a term does not fit the network.
        """
        reads_layers = params.feature_weight > 0 or params.cam_weight > 0
        graph = trace(teacher) if reads_layers else None
        self.terms = student_terms(teacher, graph, params, ctx)
        self._teacher = teacher
        self._student = student
        self._params = params
        self._autocast = ctx.autocast
        reads = sorted({name for term in self.terms for name in term.reads})
        self._recorders = []
        if graph is not None:
            self._recorders = [LayerOutputs(teacher, graph, reads), LayerOutputs(student, student.traced, reads)]

    def __call__(self, batch: Batch) -> Tensor:
        """Return the loss (0-d) of a batch; its gradient is meant for the student's parameters alone."""
        perturbs = self._params.fgsm_weight > 0
        through_teacher = perturbs or any(term.through_teacher for term in self.terms)
        if through_teacher:
            batch = Batch(batch.images.detach().requires_grad_(), batch.labels)
        view = self._view(batch, through_teacher=through_teacher)
        losses = [term.weight * term.loss(view) for term in self.terms]
        loss = torch.stack(losses).sum()
        if perturbs:
            parts = [part for term, part in zip(self.terms, losses, strict=True) if term.perturbs]
            images = adversarial(batch.images, torch.stack(parts).sum(), self._params.fgsm_epsilon)
            twin = self._view(Batch(images, view.targets), through_teacher=False)
            parts = [term.weight * term.loss(twin) for term in self.terms if term.on_perturbed]
            loss = loss + self._params.fgsm_weight * torch.stack(parts).sum()
        return loss

    def _view(self, batch: Batch, *, through_teacher: bool) -> StudentPass:
        """Run teacher and student; the teacher is left out where its logits are known and nothing else is read."""
        images, teacher_logits = batch.images, batch.teacher_logits
        with ExitStack() as stack:
            recorders = [stack.enter_context(recorder) for recorder in self._recorders]
            if teacher_logits is None or recorders:
                with torch.set_grad_enabled(through_teacher), self._autocast():
                    teacher_logits = self._teacher(images)
                teacher_logits = to_float32(teacher_logits)
            logits = self._student(images)
            layers = [recorder.last for recorder in recorders] or [{}, {}]
        targets = teacher_logits.detach().argmax(1) if batch.labels is None else batch.labels
        return StudentPass(images, targets, teacher_logits, logits, *layers)


def student_terms(
    teacher: nn.Module, graph: fx.GraphModule | None, params: DistillParams, ctx: Context
) -> list[StudentTerm]:
    """Return the terms that have a weight.

    Args:
        teacher: full-precision network.
        graph: its trace, where a term reads its layers.
        params: hyper-parameters for the teacher's card.
        ctx: the host's side.

    Raises:
        Unavailable: a term does not fit the network.
    """
    terms = [_cross_entropy(params), _distillation(params), _logit_mse(params)]
    if params.gap_entropy_weight > 0:
        terms.append(_gap_entropy(params, ctx.card.classes))
    if graph is not None:
        sizes = map_sizes(graph, torch.zeros(1, *ctx.card.input_size, device=ctx.device))
        if params.feature_weight > 0:
            terms.append(_feature_alignment(params, block_ends(graph, sizes)))
        if params.cam_weight > 0:
            terms.append(_grad_cam(params, explained_layer(teacher, sizes)))
    return [term for term in terms if term.weight > 0]


def _cross_entropy(params: DistillParams) -> StudentTerm:
    """CE(Q(x), y), where the recipe has a threshold only of images that the teacher recognizes."""

    def loss(view: StudentPass) -> Tensor:
        if params.ce_threshold == 0:
            return F.cross_entropy(view.logits, view.targets)
        return masked_cross_entropy(view.logits, view.targets, view.teacher_logits, params.ce_threshold, params.ce_mask)

    return StudentTerm("ce", params.ce_weight, loss)


def _distillation(params: DistillParams) -> StudentTerm:
    """T^2 KL(P || Q)."""
    return StudentTerm(
        "kd",
        params.alpha,
        lambda view: kd_loss(view.teacher_logits, view.logits, params.temperature, params.reduction),
    )


def _logit_mse(params: DistillParams) -> StudentTerm:
    """Mean squared difference of the logits, without temperature (KMDFQ, released code)."""
    return StudentTerm("mse", params.mse_weight, lambda view: F.mse_loss(view.logits, view.teacher_logits))


def _gap_entropy(params: DistillParams, classes: int) -> StudentTerm:
    if classes < 2:
        raise Unavailable("the entropy of one class is always 0", "choose another recipe than `adadfq`")
    return StudentTerm(
        "gap_entropy",
        params.gap_entropy_weight,
        lambda view: gap_entropy_loss(view.teacher_logits, view.logits, params.gap_entropy_temperature),
    )


def _feature_alignment(params: DistillParams, layers: list[str]) -> StudentTerm:
    """Sum of `alignment_loss` over the blocks."""

    def loss(view: StudentPass) -> Tensor:
        pairs = [(view.teacher_layers[name].normalized, view.layers[name].normalized) for name in layers]
        return torch.stack([alignment_loss(teacher, student) for teacher, student in pairs]).sum()

    return StudentTerm("features", params.feature_weight, loss, reads=tuple(layers), on_perturbed=params.fgsm_features)


def _grad_cam(params: DistillParams, layer: str) -> StudentTerm:
    """Mean squared difference of the Grad-CAM maps; each network explains its own largest logit."""

    def loss(view: StudentPass) -> Tensor:
        size = (view.images.shape[2], view.images.shape[3])
        teacher = grad_cam(view.teacher_logits, view.teacher_layers[layer].output, size).detach()
        return F.mse_loss(grad_cam(view.logits, view.layers[layer].output, size), teacher)

    return StudentTerm(
        "cam", params.cam_weight, loss, reads=(layer,), perturbs=False, on_perturbed=False, through_teacher=True
    )
