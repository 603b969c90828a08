from __future__ import annotations

import pytest

from dfqbench.api import UsageError
from dfqbench.models.reference import is_reference, parse_options, parse_reference


def test_forms_of_references() -> None:
    plain = parse_reference("torchvision:resnet18")
    assert (plain.scheme, plain.name, plain.function) == ("torchvision", "resnet18", "")
    assert plain.bare == "torchvision:resnet18"
    module = parse_reference("py:a.b:make?width=0.5&act=relu6&wide=true&sizes=[1,2]")
    assert (module.name, module.function, module.is_file) == ("a.b", "make", False)
    assert module.options == {"width": 0.5, "act": "relu6", "wide": True, "sizes": [1, 2]}
    file = parse_reference("py:/x/y z.py:make")
    assert (file.name, file.is_file, file.bare) == ("/x/y z.py", True, "py:/x/y z.py:make")
    assert parse_reference("toys:tiny", ["toys"]).scheme == "toys"
    assert is_reference("a:b")
    assert not is_reference("resnet20")


def test_options_keep_paths() -> None:
    assert parse_options("weights=/a+b/c=d.pt") == {"weights": "/a+b/c=d.pt"}
    assert parse_options("") == {}


@pytest.mark.parametrize(
    "text", ["resnet18", "timm:", ":x", "py:module", "py::f", "py:m:not-a-name", "timm:../x", "cifar:resnet21"]
)
def test_malformed_reference(text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(text)
