from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dfqbench.api import Fidelity
from dfqbench.plugins import load_plugins

GDFQ: dict[str, Any] = {"ce_weight": 1.0, "bns_weight": 0.1, "latent": 100, "lr": 1e-3, "beta1": 0.5, "beta2": 0.999}
GDFQ |= {"epochs": 400, "iterations": 200, "lr_steps": (100, 200, 300)}
ACQ: dict[str, Any] = {"centre_weight": 0.3, "centre_tolerance": 0.15, "pair_weight": 0.1, "pair_margin": 0.7}
ACQ |= {"centre_uniform": 0.3, "centre_spread": 1.5, "centre_reach": 0.7, "centre_decay": 0.99, "bns_both": False}
ACQ |= {"attention_start": 4, "attention_start_large": 50, "centre_condition": "running", "consistency_weight": 1.0}
CLUSTERQ: dict[str, Any] = {
    "mode": "paper",
    "sfda_weight": 0.9,
    "icv_weight": 0.6,
    "icv_mean": 0.5,
    "icv_spread": 1.0,
    "latent": 100,
}
CLUSTERQ |= {"centroid_start": 50, "centroid_rate": 0.2, "centroid_every": "step", "augment_share": 0.0}
CLUSTERQ |= {"moment": "std", "noise_scale": "absolute", "batch_few_classes": 512}
DFFG = {"images": 5120, "batch": 256, "iterations": 250, "keep": "10X", "momentum": 0.9, "step": 0.1, "clip": False}
DFFG |= {"norm": "l2", "ce_weight": 1.0, "tv_weight": 2.5e-5, "l2_weight": 1e-5}
TEMPORAL: dict[str, Any] = {"bns_weight": 1.0, "margin_weight": 1.0, "margin_mean": 0.5, "margin_std": 0.15}
TEMPORAL |= {"margin_form": "sampled", "margin_scale": "fixed", "margin_decay": 0.99}


@pytest.mark.parametrize(
    ("name", "attributes", "published"),
    [
        ("acq", {"quantizer": "distill:gdfq"}, ACQ),
        ("clusterq", {"quantizer": "distill:clusterq", "fidelity": Fidelity.PAPER}, CLUSTERQ),
        ("dffg", {"quantizer": "distill:dffg", "fidelity": Fidelity.PAPER}, DFFG),
        ("gdfq", {"quantizer": "distill:gdfq", "fidelity": Fidelity.RELEASED}, GDFQ),
        ("temporal", {"quantizer": "distill:temporal", "depends_on_bits": True}, TEMPORAL),
    ],
)
def test_defaults_are_the_published_ones(name: str, attributes: dict[str, Any], published: dict[str, Any]) -> None:
    method = load_plugins().method_class(name)
    assert {key: getattr(method, key) for key in attributes} == attributes
    params = dataclasses.asdict(method.params_type())
    assert params | published == params
