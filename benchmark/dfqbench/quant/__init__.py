"""Fake quantization: schemes, grids, the model rewriter, students, and the measurement of what was quantized."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dfqbench.quant.scheme import OFF, PROTOCOLS, Protocol, Scheme, parse_scheme

if TYPE_CHECKING:
    from dfqbench.quant.ranges import RangeRule, check_rule
    from dfqbench.quant.student import Student, load_student, prepare, save_student

_HEAVY = {
    "RangeRule": "dfqbench.quant.ranges",
    "Student": "dfqbench.quant.student",
    "check_rule": "dfqbench.quant.ranges",
    "load_student": "dfqbench.quant.student",
    "prepare": "dfqbench.quant.student",
    "save_student": "dfqbench.quant.student",
}

__all__ = [
    "OFF",
    "PROTOCOLS",
    "Protocol",
    "RangeRule",
    "Scheme",
    "Student",
    "check_rule",
    "load_student",
    "parse_scheme",
    "prepare",
    "save_student",
]


def __getattr__(name: str) -> Any:
    """Schemes are plain data and import without torch; the rest is imported when asked for."""
    if name in _HEAVY:
        import importlib

        return getattr(importlib.import_module(_HEAVY[name]), name)
    raise AttributeError(f"module 'dfqbench.quant' has no attribute '{name}'")
