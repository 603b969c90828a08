"""ClusterQ's offer to the host; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from dfqbench.api import Context, Fidelity, Method, Offer, SampleSource, hookimpl, param
from dfqbench.synth import GeneratorParams

if TYPE_CHECKING:
    from torch import nn

CODE = "released code (ClusterQ)"


@dataclass(frozen=True)
class ClusterqParams(GeneratorParams):
    """Hyper-parameters of ClusterQ: GDFQ's, augmentation, and the centroid loss."""

    augment_share: NonNegativeFloat = param(
        0.5, help="share of batches that are cropped and flipped before teacher and student; 0: off", source=CODE
    )
    margin_start: NonNegativeInt = param(
        10, help="epoch from which the margin loss is on, inputs up to 64 pixels", source=CODE, unit="epochs"
    )
    latent_few_classes: PositiveInt = param(
        10, help="size of the latent vector for inputs up to 64 pixels and at most ten classes", source=CODE
    )
    mode: Literal["paper", "released", "none"] = param(
        "paper",
        help="the centroid loss: as abstract and talk describe it; what the released code computes (its centroids are "
        "the running statistics, its layers' weights decay geometrically, its diversity term has no gradient); or off",
        source="inferred: methods.md 3; the paper's text beyond the abstract was not at hand",
    )
    cluster_weight: NonNegativeFloat = param(0.9, help="weight of the centroid loss; 0: off", source=CODE)
    cluster_start: NonNegativeInt = param(
        10, help="epoch from which centroids are kept and compared, inputs up to 64 pixels", source=CODE, unit="epochs"
    )
    cluster_start_large: NonNegativeInt = param(50, help="the same for larger inputs", source=CODE, unit="epochs")
    centroid_decay: NonNegativeFloat = param(
        0.8, help="weight of the old centroid where an epoch's estimate comes in", source=CODE
    )
    correct_only: bool = param(
        True, help="whether samples that the teacher misclassifies are left out", source="abstract; off in the code"
    )
    noise_mean: NonNegativeFloat = param(
        0.03, help="half width of the uniform perturbation of centroid means; 0: off", source=CODE
    )
    noise_var: NonNegativeFloat = param(
        0.05, help="half width of the uniform perturbation of centroid variances; 0: off", source=CODE
    )
    diversity_weight: NonNegativeFloat = param(
        0.1, help="weight of the released mode's diversity term (without gradient) in the centroid loss", source=CODE
    )


class Clusterq(Method):
    """GDFQ whose images shall also have the deep statistics of their class, with some spread."""

    name = "clusterq"
    title = "ClusterQ"
    paper = "Gao et al., ClusterQ: Semantic Feature Distribution Alignment for Data-Free Quantization, ICDM 2022"
    link = "https://arxiv.org/abs/2205.00179"
    fidelity = Fidelity.RECONSTRUCTION
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
