"""The error by which a check says what to change."""

from __future__ import annotations

from dfqbench.api.errors import PluginError


class Fault(PluginError):  # noqa: N818 - the result of a check, as `Skip` is the result of a plugin
    """A method does not keep the contract.

    Args:
        message: the violation.
        hint: what to change.
    """
