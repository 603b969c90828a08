"""Plain help pages in groups; typer's own groups need rich, which takes long to load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

OPTIONS = {
    "Selection": (
        *("--grid", "--on", "--models", "--methods", "--bits", "--seeds", "--set", "--budget", "--limit"),
        *("--model", "--method", "--controls", "--recipe", "--mixed", "--source", "--protocol"),
    ),
    "What to print": ("--format", "--rows", "--columns", "--value", "--vs", "--times", "--json", "--sort"),
    "Data and places": ("--data", "--plugin", "--out", "--name", "--to"),
    "How to run it": (
        *("--device", "--jobs", "--executor", "--separate", "--exact", "--memory", "--oracle", "--time"),
        *("--sample", "--seed", "--trust", "--again", "--track"),
    ),
    "SLURM": ("--peers", "--slurm", "--setup", "--dry-run", "--probe"),
    "Again, and limits": (
        *("--retry", "--fresh", "--any-environment", "--fail-fast", "--max-failures", "--time-limit"),
        *("--evaluation-limit", "--checkpoint-every", "--unconfined", "--yes"),
    ),
}
"""Groups of the options in long lists."""
LONG = 8
"""Entries from which on a list is split into groups."""
WIDEST = 28
"""Characters of a name up to which its text is in the same line."""


class Command(TyperCommand):
    """A command whose help groups the options, and shows arguments by their metavars alone."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options."""
        _write_parameters(self, ctx, formatter)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the base class's
        """Return the parts of the usage line."""
        return ["[OPTIONS]", *(_usage(parameter) for parameter in self.params if _is_argument(parameter))]


class Group(TyperGroup):
    """A group whose help groups the commands."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, then the options."""
        self.format_commands(ctx, formatter)
        _write_parameters(self, ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - the base class's
        """Write the commands with the first line of their help."""
        limit = formatter.width - 6 - max(map(len, self.commands))
        rows = [
            (getattr(command, "rich_help_panel", None), (name, command.get_short_help_str(limit)))
            for name, command in self.commands.items()
        ]
        _write(formatter, "Commands", rows)


def _write_parameters(command: Any, ctx: Any, formatter: Any) -> None:
    arguments, options = [], []
    for parameter in command.get_params(ctx):
        if _is_argument(parameter):
            arguments.append((None, (_metavar(parameter), parameter.help or "")))
        elif record := parameter.get_help_record(ctx):
            group = next((group for group, names in OPTIONS.items() if parameter.opts[0] in names), None)
            options.append((group, record))
    _write(formatter, "Arguments", arguments)
    order = [*OPTIONS, None]
    _write(formatter, "Options", sorted(options, key=lambda option: order.index(option[0])))


def _write(formatter: Any, title: str, rows: Sequence[tuple[Any, tuple[str, str]]]) -> None:
    """Write rows of (group, row): a long list by group, with columns of one width; those of no group under `title`."""
    groups: dict[str, list[tuple[str, str]]] = {}
    width = max((len(name) for _, (name, _) in rows if len(name) <= WIDEST), default=0)
    for group, (name, text) in rows:
        key = group if isinstance(group, str) and len(rows) >= LONG else title
        groups.setdefault(key, []).append((name.ljust(width), text))
    for group, entries in groups.items():
        with formatter.section(group):
            formatter.write_dl(entries)


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _metavar(parameter: Any) -> str:
    name: str = parameter.metavar or parameter.name.upper()
    return name if parameter.nargs == 1 else f"{name}..."


def _usage(parameter: Any) -> str:
    return _metavar(parameter) if parameter.required else f"[{_metavar(parameter)}]"
