"""Recipes of `distill`: the student losses and schedules of papers, for any source; free of torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from dfqbench.quantizers.distill_params import DistillParams

_GDFQ = DistillParams()
# Distillation 100 times heavier than GDFQ's on CIFAR-100. The paper's warm-up is 50 epochs, the code's 10 on CIFAR
# (methods.md 3.1).
_CLUSTERQ = dataclasses.replace(_GDFQ, reduction="batchmean", batch_few_classes=512, warmup_epochs=50)
# Logits' squared difference instead of KL, without temperature (methods.md 6).
_KMDFQ = dataclasses.replace(_GDFQ, alpha=0.0, mse_weight=1.0, warmup_epochs=20, warmup_epochs_large=50)
_TEMPORAL = dataclasses.replace(_KMDFQ, interpolation=0.5)
# The fine-tuning of most later papers (methods.md 8.3, released code): alpha times T^2 times the batch mean of KL, and
# every image cropped and flipped at each step.
_INTRAQ = dataclasses.replace(
    _GDFQ,
    alpha=20.0,
    reduction="batchmean",
    epochs=151,
    lr_steps=(20, 40, 60),
    lr_steps_large=(100, 200, 350),
    warmup_epochs=4,
    warmup_epochs_large=4,
    batch=256,
    batch_few_classes=256,
    augment_share=1.0,
)
# DFFG's own (methods.md 5): as `intraq` at a rate that is stable on small networks, so the recipe of crosses.
_DFFG = dataclasses.replace(
    _GDFQ,
    alpha=20.0,
    reduction="batchmean",
    lr=1e-5,
    epochs=150,
    lr_steps=(100,),
    lr_steps_large=(100,),
    warmup_epochs_large=4,
    batch=64,
    batch_few_classes=64,
    batch_large=4,
)
# AdaDFQ's own loss alone (methods.md 8.6, released code, which the recipe of AdaSG shares): batch 16 everywhere. The
# values for larger inputs are those of ResNet-18 and MobileNetV2.
_ADADFQ = dataclasses.replace(
    _GDFQ,
    alpha=0.0,
    ce_weight=0.0,
    gap_entropy_weight=1.0,
    gap_entropy_temperature=20.0,
    gap_entropy_temperature_large=5.0,
    lr_large=1e-5,
    lr_steps_large=(350, 400),
    batch=16,
    batch_few_classes=16,
)
# KL, feature alignment, and both on adversarial images; no labels (methods.md 8.6, released code).
# Inferred: images as they are.
_HAST = dataclasses.replace(
    _INTRAQ,
    ce_weight=0.0,
    feature_weight=2000.0,
    feature_weight_few_classes=1000.0,
    feature_weight_large=4000.0,
    fgsm_weight=1.0,
    fgsm_epsilon=0.02,
    fgsm_epsilon_few_classes=0.01,
    fgsm_epsilon_large=0.01,
    lr=1e-5,
    batch=64,
    batch_few_classes=64,
    augment_share=0.0,
)
# SynQ's only released configuration is ImageNet's (methods.md 8.6): weights, filter and larger inputs' schedule are
# its. From the paper: the batches and the threshold on CIFAR-10. Inferred: on smaller inputs the rate and its steps are
# HAST's (the paper searches the rate for each setting), and the filter has the same share of the image's side.
_SYNQ = dataclasses.replace(
    _HAST,
    ce_weight=0.5,
    ce_threshold=0.5,
    ce_threshold_few_classes=0.7,
    feature_weight=4000.0,
    feature_weight_few_classes=4000.0,
    cam_weight=50.0,
    fgsm_epsilon=0.01,
    fgsm_features=False,
    fgsm_features_large=True,
    low_pass=0.36,
    epochs=101,
    batch=256,
    batch_few_classes=256,
)
# KL at T = 1 alone, for a student trained from scratch at a rate of 0.1 (methods.md 8.6, released code). Inferred: 1e-4
# and 1e-6 for a quantized copy, and GDFQ's batch for larger inputs.
_DAFL = dataclasses.replace(
    _GDFQ,
    temperature=1.0,
    reduction="batchmean",
    ce_weight=0.0,
    weight_decay=5e-4,
    epochs=2000,
    iterations=120,
    lr_steps=(800, 1600),
    lr_steps_large=(800, 1600),
    warmup_epochs_large=4,
    batch=1024,
    batch_few_classes=1024,
)
# The same loss, ten updates of the student after each of the generator, and a cosine (methods.md 8.6, paper and
# third-party code). 200 epochs follow the 50 in which the generator learns alone. Rates are inferred as for `dafl`.
_AKD = dataclasses.replace(
    _DAFL,
    weight_decay=1e-4,
    epochs=250,
    iterations=400,
    student_steps=10,
    lr_schedule="cosine",
    warmup_epochs=50,
    warmup_epochs_large=50,
    batch=256,
    batch_few_classes=256,
)

RECIPES: Mapping[str, DistillParams] = {
    "gdfq": _GDFQ,
    "clusterq": _CLUSTERQ,
    "kmdfq": _KMDFQ,
    "temporal": _TEMPORAL,
    "intraq": _INTRAQ,
    "dffg": _DFFG,
    "adadfq": _ADADFQ,
    "hast": _HAST,
    "synq": _SYNQ,
    "dafl": _DAFL,
    "akd": _AKD,
}
