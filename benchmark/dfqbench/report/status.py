"""Statuses in words, and which of them come with numbers."""

from __future__ import annotations

from dfqbench.report.values import Record, items, number, text

FINISHED = frozenset({"ok", "finished", "done", "complete", "collapsed"})
"""Statuses of a cell whose numbers count."""
COLLAPSED = "collapsed"
"""A finished cell at chance: its number is a result, and never the best."""
WORDS = {"oom": "out of memory", "timeout": "time limit"}
"""What tables say where the status itself is no word."""
OURS = frozenset(
    {"Invalid", "Collapsed", "Timeout", "Preempted", "WorkerDied", "Unavailable", "Skip", "PluginError", "UsageError"}
    | {"InputError", "NonFiniteError", "DfqError"}
)
"""Types of errors whose messages say everything; others are shown with their type."""


def finished(record: Record) -> bool:
    """Whether the record's numbers count."""
    return text(record, "status", "finished") in FINISHED and number(record, "top1") is not None


def competes(record: Record) -> bool:
    """Whether the record's numbers may be the best: finished, no control, not at chance."""
    return finished(record) and not control_rank(record) and text(record, "status") != COLLAPSED


def word(record: Record) -> str:
    """What the table shows instead of a number."""
    status = text(record, "status", "failed")
    return "no result" if status in FINISHED else WORDS.get(status, status)


def reason(record: Record) -> str:
    """Why there is no number, or none that counts; one line."""
    message = " ".join(text(record, "error.message").split())
    kind = text(record, "error.type")
    ours = not kind or kind in OURS or kind.lower() == text(record, "status")
    phase = text(record, "error.phase")
    what = message if ours else f"{kind}: {message}" if message else kind
    what = what or text(record, "reason") or ", ".join(map(str, items(record, "flags"))) or "no reason recorded"
    return f"{what} (in {phase})" if phase else what


FLOOR, CEILING = "noise", "real"
"""Names of the two controls."""


def control_rank(record: Record) -> int:
    """0 for a competitor; controls come after, the floor first."""
    method = text(record, "method")
    if method == CEILING:
        return 3
    if method == FLOOR:
        return 2
    return int(record.get("control") is True)
