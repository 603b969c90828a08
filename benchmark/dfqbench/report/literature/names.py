"""Names as papers print them, and the names of the same things here."""

from __future__ import annotations

import re
from functools import cache

_METHODS = {
    "zeroq": ("zeroq", "calibrate"),
    "zeroq (official clone)": ("zeroq", "calibrate"),
    "zeroq (re-impl.)": ("zeroq", "calibrate"),
    "gdfq": ("gdfq", "distill"),
    "clusterq": ("clusterq", "distill"),
    "acq": ("acq", "distill"),
    "dffg": ("dffg", "calibrate"),
    "temporal diversity": ("temporal", "distill"),
    "real-data calibration": ("real", "calibrate"),
    "real-data fine-tuning (upper reference)": ("real", "distill"),
}
"""Method as printed (lower case): its name here and the quantizer that its authors use."""
_TUNED = ("fine-tuned", "fine-tuning")
_NOT_TUNED = ("no fine-tuning", "calibration only")
_DATASETS = {"cifar-10": "cifar10", "cifar-100": "cifar100"}
_MODELS = {
    "bnvgg16": "vgg16bn",
    "mobilenetv1100": "mobilenetv1",
    "mobilenetv2100": "mobilenetv2",
    "mobilenet": "mobilenetv1",
}
"""Networks that have several names."""


@cache
def method_key(printed: str, notes: str = "") -> tuple[str, str]:
    """Return the method's and the quantizer's name here; two empty ones where the method is not implemented here.

    Args:
        printed: method as printed.
        notes: the source's; they say where images of a method were used for fine-tuning.
    """
    method, quantizer = _METHODS.get(printed.strip().lower(), ("", ""))
    text = notes.lower()
    if method and any(word in text for word in _TUNED) and not any(word in text for word in _NOT_TUNED):
        quantizer = "distill"
    return method, quantizer


@cache
def dataset_key(name: str) -> str:
    """Return the target's name here, of a data set as printed or of a target; another name stays as it is."""
    lower = name.strip().lower()
    return _DATASETS.get(lower, lower)


@cache
def model_key(name: str) -> str:
    """Return one word for a network, of its name as printed or of a reference: `resnet20` for `cifar:resnet20`.

    A reference's library, arguments and weights' tag are left out; a width other than 1 stays part of the name.
    """
    bare = name.strip().lower().rpartition(":")[2].partition("?")[0].partition(".")[0]
    bare = re.sub(r"_(cifar10|cifar100)$", "", bare)
    bare = re.sub(r"[^a-z0-9]", "", bare.removesuffix("_w1"))
    return _MODELS.get(bare, bare)
