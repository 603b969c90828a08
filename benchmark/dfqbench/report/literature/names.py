"""Names as papers print them, and the names of the same things here."""

from __future__ import annotations

import re
from functools import cache

from dfqbench.grid.choice import NO_IMAGES

_METHODS = {
    "zeroq": ("zeroq", "calibrate"),
    "zeroq (official clone)": ("zeroq", "calibrate"),
    "zeroq (re-impl.)": ("zeroq", "calibrate"),
    "gdfq": ("gdfq", "fine-tune"),
    "clusterq": ("clusterq", "fine-tune"),
    "acq": ("acq", "fine-tune"),
    "dffg": ("dffg", "fine-tune"),
    **{f"dffg ({points} save points, {speed}x)": ("dffg", "fine-tune") for points, speed in ((2, 4), (4, 8), (5, 10))},
    "temporal diversity": ("temporal", "fine-tune"),
    "random noise calibration": ("noise", "calibrate"),
    "real-data calibration": ("real", "calibrate"),
    "real-data fine-tuning (upper reference)": ("real", "fine-tune"),
    **{quantizer: (NO_IMAGES, quantizer) for quantizer in ("squant", "dfq", "rex")},
}
"""Method as printed (lower case): its name here and the kind of recipe that its authors use."""
_DATASETS = {"cifar-10": "cifar10", "cifar-100": "cifar100"}
_MODELS = {
    "bnvgg16": "vgg16bn",
    "mobilenetv1100": "mobilenetv1",
    "mobilenetv2100": "mobilenetv2",
    "mobilenet": "mobilenetv1",
}
"""Networks that have several names."""


def method_key(printed: str) -> tuple[str, str]:
    """Return the method's name here and its authors' kind of recipe; two empty ones where it is not implemented here.

    Args:
        printed: method as printed.
    """
    return _METHODS.get(printed.strip().lower(), ("", ""))


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
