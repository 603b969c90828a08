"""How strongly a recipe of `distill` pulls a student to its teacher, whatever the images; free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from dfqbench.quantizers.distill_params import DistillParams

CLASSES = (10, 100, 1000)
"""Numbers of classes that recipes are compared at: those of CIFAR-10, CIFAR-100 and ImageNet."""
MEANING = (
    "strength of a recipe: the coefficient of sum dz^2 in an image's loss, where dz is the student's logits minus the "
    "teacher's, and in brackets its product with the learning rate (lr; for 1,000 classes lr_large), by which short "
    "runs are mostly ranked, whatever the images"
)


@dataclass(frozen=True, slots=True)
class Strength:
    """Strength of a recipe for networks with this number of classes (methods.md 0.6).

    Attributes:
        classes: C.
        coefficient: of sum_c dz_c^2 in the loss of an image, for centred dz that are small beside the temperature.
        lr: learning rate.
        product: of the two.
    """

    classes: int
    coefficient: float
    lr: float
    product: float


def strength(params: DistillParams, classes: int) -> Strength:
    """Return how strongly a recipe pulls the student's logits to the teacher's.

    T^2 KL and AdaDFQ's gap entropy are about sum dz^2 / (2 C), and `mean` divides by C once more; the mean squared
    difference is sum dz^2 / C. Adversarial images count like their originals. Cross-entropy against labels, feature
    alignment and Grad-CAM are left out.

    Args:
        params: the recipe.
        classes: C; from 1,000 on the learning rate is that of larger inputs.
    """
    kd = params.alpha / (2 * classes * (classes if params.reduction == "mean" else 1))
    gap = params.gap_entropy_weight / (2 * classes)
    coefficient = (kd + gap + params.mse_weight / classes) * (1 + params.fgsm_weight)
    lr = params.lr_large if classes >= CLASSES[-1] else params.lr
    return Strength(classes, coefficient, lr, coefficient * lr)
