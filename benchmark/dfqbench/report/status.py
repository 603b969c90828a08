"""Statuses in words, and which of them come with numbers."""

from __future__ import annotations

from dfqbench.run.store.record import Error, Record

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
    return record.status in FINISHED and record.top1 is not None


def competes(record: Record) -> bool:
    """Whether the record's numbers may be the best: finished, no control, not at chance."""
    return finished(record) and not control_rank(record) and record.status != COLLAPSED


def word(record: Record) -> str:
    """What the table shows instead of a number."""
    status = record.status or "failed"
    return "no result" if status in FINISHED else WORDS.get(status, status)


def reason(record: Record) -> str:
    """Why there is no number, or none that counts; one line."""
    error = record.error or Error()
    message = " ".join(error.message.split())
    ours = not error.type or error.type in OURS or error.type.lower() == record.status
    what = message if ours else f"{error.type}: {message}" if message else error.type
    what = what or ", ".join(record.flags) or "no reason recorded"
    return f"{what} (in {error.phase})" if error.phase else what


FLOOR, CEILING = "noise", "real"
"""Names of the two controls."""


def control_rank(record: Record) -> int:
    """0 for a competitor; controls come after, the floor first."""
    if record.method == CEILING:
        return 3
    if record.method == FLOOR:
        return 2
    return int(record.control)
