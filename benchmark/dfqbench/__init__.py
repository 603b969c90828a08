"""dfqbench: fair comparison of data-free quantization methods for image classifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from dfqbench.quant.student import load_student
    from dfqbench.report.frame import records

__version__ = "0.1.0"
__all__ = ["__version__", "load_student", "records"]
# pandas and torch are imported with the function that needs them.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__, submod_attrs={"quant.student": ["load_student"], "report.frame": ["records"]}
)
