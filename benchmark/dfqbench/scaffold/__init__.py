"""New method packages: what `dfqbench methods new` writes."""

from dfqbench.scaffold.package import KINDS, new_package

__all__ = ["KINDS", "new_package"]
