"""dfqbench: fair comparison of data-free quantization methods for image classifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfqbench.quant.student import load_student
    from dfqbench.report.frame import records

__version__ = "0.1.0"
__all__ = ["__version__", "load_student", "records"]


def __getattr__(name: str) -> Any:
    """Imports pandas or torch only when the function that needs it is asked for."""
    if name == "records":
        from dfqbench.report.frame import records

        return records
    if name == "load_student":
        from dfqbench.quant.student import load_student

        return load_student
    raise AttributeError(f"module 'dfqbench' has no attribute '{name}'")
