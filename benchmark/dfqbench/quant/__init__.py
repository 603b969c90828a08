"""Fake quantization: schemes, formulas, the rewriter, students and coverage; public names are in `__init__.pyi`.

Names are imported on first use; schemes and range rules need no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
