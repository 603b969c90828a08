"""Building blocks of sources, for built-in and third-party methods.

Names are imported on first use, so that a plugin's torch-free module may import `GeneratorParams` from here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfqbench.synth.attention import (
        FeatureMaps,
        PassMaps,
        attention_centre,
        attention_consistency_loss,
        attention_map,
        batch_statistics,
        centre_matching_loss,
        mode_seeking_loss,
        pair_similarity_loss,
    )
    from dfqbench.synth.augment import crop_and_flip
    from dfqbench.synth.centroids import (
        ClassCentroids,
        cluster_loss,
        deep_moments,
        deep_start,
        released_cluster_term,
        released_diversity_term,
    )
    from dfqbench.synth.family import (
        base_terms,
        build_generator,
        family_margin_term,
        generator_plan,
        generator_source,
        seeded,
    )
    from dfqbench.synth.generators import (
        ClassBatchNorm,
        Condition,
        Draw,
        Generator,
        class_condition,
        paired_centre_condition,
        pairs,
    )
    from dfqbench.synth.image_loop import AdamOnPlateau, ImageOptimizer, optimize_images
    from dfqbench.synth.loop import GeneratorSource, LoopSettings
    from dfqbench.synth.losses import (
        ZEROQ_EPS,
        bns_loss,
        expected_margin_loss,
        logit_discrepancy,
        probability_discrepancy,
        sampled_margin_loss,
        zeroq_gap,
        zeroq_loss,
    )
    from dfqbench.synth.moments import Moments, batch_moments, positions, sample_moments, unbiased
    from dfqbench.synth.nan_check import NonFiniteCheck
    from dfqbench.synth.params import FEW_CLASSES, SMALL_INPUT, GeneratorParams, TrainingPlan, is_large
    from dfqbench.synth.schedule import DevicePlateau
    from dfqbench.synth.source import FixedSource
    from dfqbench.synth.statistics import (
        BatchNormStatistics,
        LayerConstants,
        LayerStatistics,
        PassStatistics,
        batchnorm_layers,
    )
    from dfqbench.synth.terms import FunctionTerm, GeneratorPass, LossTerm, bns_term, cross_entropy_term, margin_term

_MODULES = {
    "attention": (
        "FeatureMaps PassMaps attention_centre attention_consistency_loss attention_map batch_statistics "
        "centre_matching_loss mode_seeking_loss pair_similarity_loss"
    ),
    "augment": "crop_and_flip",
    "centroids": ("ClassCentroids cluster_loss deep_moments deep_start released_cluster_term released_diversity_term"),
    "family": "base_terms build_generator family_margin_term generator_plan generator_source seeded",
    "generators": "ClassBatchNorm Condition Draw Generator class_condition paired_centre_condition pairs",
    "loop": "GeneratorSource LoopSettings",
    "image_loop": "AdamOnPlateau ImageOptimizer optimize_images",
    "losses": (
        "ZEROQ_EPS bns_loss expected_margin_loss logit_discrepancy probability_discrepancy sampled_margin_loss "
        "zeroq_gap zeroq_loss"
    ),
    "moments": "Moments batch_moments positions sample_moments unbiased",
    "nan_check": "NonFiniteCheck",
    "params": "FEW_CLASSES SMALL_INPUT GeneratorParams TrainingPlan is_large",
    "schedule": "DevicePlateau",
    "source": "FixedSource",
    "statistics": "BatchNormStatistics LayerConstants LayerStatistics PassStatistics batchnorm_layers",
    "terms": "FunctionTerm GeneratorPass LossTerm bns_term cross_entropy_term margin_term",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "FEW_CLASSES",
    "SMALL_INPUT",
    "ZEROQ_EPS",
    "AdamOnPlateau",
    "BatchNormStatistics",
    "ClassBatchNorm",
    "ClassCentroids",
    "Condition",
    "DevicePlateau",
    "Draw",
    "FeatureMaps",
    "FixedSource",
    "FunctionTerm",
    "Generator",
    "GeneratorParams",
    "GeneratorPass",
    "GeneratorSource",
    "ImageOptimizer",
    "LayerConstants",
    "LayerStatistics",
    "LoopSettings",
    "LossTerm",
    "Moments",
    "NonFiniteCheck",
    "PassMaps",
    "PassStatistics",
    "TrainingPlan",
    "attention_centre",
    "attention_consistency_loss",
    "attention_map",
    "base_terms",
    "batch_moments",
    "batch_statistics",
    "batchnorm_layers",
    "bns_loss",
    "bns_term",
    "build_generator",
    "centre_matching_loss",
    "class_condition",
    "cluster_loss",
    "crop_and_flip",
    "cross_entropy_term",
    "deep_moments",
    "deep_start",
    "expected_margin_loss",
    "family_margin_term",
    "generator_plan",
    "generator_source",
    "is_large",
    "logit_discrepancy",
    "margin_term",
    "mode_seeking_loss",
    "optimize_images",
    "pair_similarity_loss",
    "paired_centre_condition",
    "pairs",
    "positions",
    "probability_discrepancy",
    "released_cluster_term",
    "released_diversity_term",
    "sample_moments",
    "sampled_margin_loss",
    "seeded",
    "unbiased",
    "zeroq_gap",
    "zeroq_loss",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Imports a name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'dfqbench.synth' has no attribute '{name}'")
    return getattr(importlib.import_module(f"dfqbench.synth.{_HOME[name]}"), name)
