"""Whether Triton computes the operators of a process."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

import pytest

from dfqbench import accel
from dfqbench.accel import backend


@pytest.fixture(autouse=True)
def usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton, a C compiler and Python's headers, for `backend`."""
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.delenv(backend.SWITCH, raising=False)
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(Path, "is_file", lambda _: True)


def test_kernels_are_tritons_on_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_enabled", False)
    version = importlib.metadata.version("triton")
    assert backend.kernels_for("cpu") == "torch"
    assert backend.kernels_for("cuda:1") == f"triton {version}"
    for device, fast, in_use in (("cuda", True, True), ("cuda", False, False), ("cpu", True, False)):
        accel.set_kernels(device, fast=fast)
        assert backend.enabled() is in_use
    monkeypatch.setenv(backend.SWITCH, "0")
    accel.set_kernels("cuda", fast=True)
    assert not backend.enabled()
    assert backend.kernels_for("cuda") == "torch"


def test_using_kernels_restores_the_kernels_in_use_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (True, False):
        monkeypatch.setattr(backend, "_enabled", before)
        with pytest.raises(RuntimeError, match="inside"), accel.using_kernels("cuda", fast=not before):
            assert backend.enabled() is not before
            raise RuntimeError("inside")
        assert backend.enabled() is before


def test_reasons_why_triton_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not backend.why_no_triton()
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    assert "Python.h" in backend.why_no_triton()
    monkeypatch.delenv("CC")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "CC" in backend.why_no_triton()

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert backend.why_no_triton() == "Triton is not installed"
    assert backend.triton_version() is None
    monkeypatch.setenv(backend.SWITCH, "0")
    assert backend.why_no_triton() == f"{backend.SWITCH}=0"
