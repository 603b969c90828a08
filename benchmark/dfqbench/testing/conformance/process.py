"""Checks of a dry run in a process of its own: it ends, and it leaves other files and the network alone."""

from __future__ import annotations

from collections.abc import Iterable

from dfqbench.testing.conformance.fault import Fault
from dfqbench.testing.conformance.method_under_test import MethodUnderTest


def ends(method: MethodUnderTest) -> Iterable[str]:
    """A run on a toy network comes to its end."""
    result = method.dry_run
    if not result.ended:
        raise Fault(
            f"it did not end within {method.limit:.0f} s on a toy network",
            "scale its steps by ctx.budget.training_steps(...) or .image_steps(...), and leave no endless loop",
        )
    if result.exit_status is not None:
        raise Fault(
            f"it ended the process with status {result.exit_status}",
            "raise an exception instead of os._exit; a negative status is the signal that killed it",
        )
    if result.error:
        raise Fault(f"it failed in a process of its own: {result.error}", "repair it there")
    return ()


def confined(method: MethodUnderTest) -> Iterable[str]:
    """Nothing is written outside the work folder, nothing read under a data folder, nothing fetched."""
    result = method.dry_run
    if result.read:
        raise Fault(f"it opens real data: {', '.join(result.read[:3])}", "data-free methods get no data; remove it")
    if result.written:
        raise Fault(
            f"it writes outside its work folder: {', '.join(result.written[:3])}",
            "write below ctx.workdir only, or better nothing at all",
        )
    if result.connected:
        raise Fault(
            f"it connects to {', '.join(result.connected[:3])}",
            "fetch nothing while it runs; ship files in the package",
        )
    return ()
