"""Fake quantization: schemes, formulas, the model rewriter, students, and the measurement of what was quantized."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dfqbench.quant.range_rules import check_range_rule, range_rules
from dfqbench.quant.scheme import OFF, PROTOCOLS, Protocol, Scheme, parse_scheme

if TYPE_CHECKING:
    from dfqbench.quant.fake_quantize_modules import FakeQuantize
    from dfqbench.quant.observers import Observer
    from dfqbench.quant.student import Student, load_student, prepare, save_student

_NEEDS_TORCH = {
    "FakeQuantize": "dfqbench.quant.fake_quantize_modules",
    "Observer": "dfqbench.quant.observers",
    "Student": "dfqbench.quant.student",
    "load_student": "dfqbench.quant.student",
    "prepare": "dfqbench.quant.student",
    "save_student": "dfqbench.quant.student",
}

__all__ = [
    "OFF",
    "PROTOCOLS",
    "FakeQuantize",
    "Observer",
    "Protocol",
    "Scheme",
    "Student",
    "check_range_rule",
    "load_student",
    "parse_scheme",
    "prepare",
    "range_rules",
    "save_student",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use; schemes and range rules are plain data."""
    if name in _NEEDS_TORCH:
        return getattr(importlib.import_module(_NEEDS_TORCH[name]), name)
    raise AttributeError(f"module 'dfqbench.quant' has no attribute '{name}'")
