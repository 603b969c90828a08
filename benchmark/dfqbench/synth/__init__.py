"""Building blocks of sources, for built-in and third-party methods; `__init__.pyi` lists them.

Names are imported on first use, so that a plugin's torch-free module may import `GeneratorParams` from here.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
