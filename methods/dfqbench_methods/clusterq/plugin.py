"""ClusterQ's offer to the host; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from dfqbench.api import Context, Fidelity, Method, Offer, SampleSource, hookimpl, param
from dfqbench.synth import GeneratorParams

if TYPE_CHECKING:
    from torch import nn

CODE = "released code (ClusterQ)"
FDDA = "released code (FDDA, which ClusterQ grew from)"
RELEASED = "only `mode=released`: "


@dataclass(frozen=True)
class ClusterqParams(GeneratorParams):
    """Hyper-parameters of ClusterQ: GDFQ's, and those of the class centroids."""

    batch_few_classes: PositiveInt = param(
        512, help="the same for inputs up to 64 pixels and at most ten classes", source=CODE, unit="images"
    )
    latent: PositiveInt = param(
        100, help="size of the latent vector; the released code has 10 on CIFAR-10", source="inferred: GDFQ's value"
    )
    augment_share: NonNegativeFloat = param(
        0.0,
        help="share of batches that are cropped and flipped before teacher and student; 0: off; the released code has "
        "0.5",
        source="paper: none in its text",
    )
    margin_start: NonNegativeInt = param(
        10, help="epoch from which the margin loss is on, inputs up to 64 pixels", source=CODE, unit="epochs"
    )
    mode: Literal["paper", "released", "none"] = param(
        "paper",
        help="the centroid loss: the paper's; what the released code computes (its centroids are the running "
        "statistics, its layers' weights decay geometrically, its diversity term has no gradient; set latent=10, "
        "augment_share=0.5 and centroid_start=10 for the rest of the code); or off",
        source="paper",
    )
    sfda_weight: NonNegativeFloat = param(
        0.9, help="weight of the distance to the class's centroid; in `mode=released` of its whole loss", source="paper"
    )
    icv_weight: NonNegativeFloat = param(
        0.6, help="weight of the distance to the perturbed centroid; 0: off", source="paper"
    )
    icv_mean: NonNegativeFloat = param(0.5, help="deviation of the Gaussian perturbation of means", source="paper")
    icv_spread: NonNegativeFloat = param(
        1.0, help="deviation of the Gaussian perturbation of standard deviations", source="paper"
    )
    noise_scale: Literal["absolute", "relative"] = param(
        "absolute",
        help="unit of both deviations: 1, or the layer's running standard deviation (running variance for "
        "`moment=var`)",
        source="paper",
    )
    moment: Literal["std", "var"] = param(
        "std",
        help="what is compared beside means: standard deviations or variances; the released code has variances",
        source="paper",
    )
    deep: Literal["half", "last_third"] = param(
        "half",
        help="BatchNorm layers that are compared: of L those from index int((L + 1) / 2) - 2, or the last third",
        source=f"{CODE}; the paper gives no number",
    )
    centroid_start: NonNegativeInt = param(
        50,
        help="epoch from which centroids are kept and compared; the released code has 10 on CIFAR",
        source="paper",
        unit="epochs",
    )
    centroid_every: Literal["step", "epoch"] = param(
        "step", help="how often centroids move; the released code's would move at each epoch", source="paper"
    )
    centroid_rate: Annotated[PositiveFloat, Field(le=1)] = param(
        0.2, help="weight of the new value where a centroid moves", source="paper"
    )
    correct_only: bool = param(
        True,
        help="whether samples that the teacher misclassifies are left out of their class's statistics",
        source="paper; off in the released code",
    )
    grouping: Literal["auto", "batch", "single_class"] = param(
        "auto",
        help="classes are grouped in the generator's batch, or in a second batch of one random class at each step; "
        "auto: by batch / classes, from 8 `batch`",
        source=f"paper (`batch`); {FDDA} (`single_class`); inferred (`auto`): too few samples of a class",
    )
    released_noise_mean: NonNegativeFloat = param(
        0.03, help=f"{RELEASED}half width of the uniform perturbation of means; 0: off", source=CODE
    )
    released_noise_var: NonNegativeFloat = param(
        0.05, help=f"{RELEASED}half width of the uniform perturbation of variances; 0: off", source=CODE
    )
    released_diversity_weight: NonNegativeFloat = param(
        0.1, help=f"{RELEASED}weight of the diversity term, which has no gradient", source=CODE
    )


class Clusterq(Method):
    """GDFQ whose images shall also have the deep statistics of their class, with some spread."""

    name = "clusterq"
    title = "ClusterQ"
    paper = "Gao et al., ClusterQ: Semantic Feature Distribution Alignment for Data-Free Quantization, ICDM 2022"
    link = "https://arxiv.org/abs/2205.00179"
    fidelity = Fidelity.PAPER
    quantizer = "distill:clusterq"
    params_type = ClusterqParams
    params: ClusterqParams

    def synthesize(self, teacher: nn.Module, ctx: Context) -> SampleSource:
        """Build the generator and its centroid loss; a live source."""
        from dfqbench_methods.clusterq.synthesizer import synthesize

        return synthesize(teacher, ctx, self.params)


@hookimpl
def dfqbench_methods() -> list[Offer]:
    """Offer ClusterQ."""
    return [Offer("clusterq", "dfqbench_methods.clusterq.plugin:Clusterq")]
