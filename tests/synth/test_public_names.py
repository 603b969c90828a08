from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize("package", ["dfqbench.synth", "dfqbench.quant"])
def test_every_public_name_is_there(package: str) -> None:
    module = importlib.import_module(package)
    assert len(dir(module)) > 10
    for name in dir(module):
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        module.nothing  # noqa: B018
