"""Method labels: the name of a record's method in tables."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence

from dfqbench.api.method import Fidelity
from dfqbench.report.record_access import control_rank, flattened, json_ready
from dfqbench.run.store.record import Record

_CONTROL_MARK = " (control)"
FIDELITY_MARKS = {str(Fidelity.RECONSTRUCTION): "†", str(Fidelity.PAPER): "‡"}
"""Marks of methods that do not follow their authors' code, the weakest first."""
FIDELITY_NOTES = {
    "†": "reconstruction by this project: parts that could not be read are inferred; not the authors' code",
    "‡": "written from the paper's text; not the authors' code",
}


def method_labels(records: Sequence[Record]) -> dict[int, str]:
    """Return the method's label of every record, by the record's `id`.

    Parameters are part of it only where a method was run with several values of them.
    """
    quantizers: dict[str, set[str]] = defaultdict(set)
    for record in records:
        quantizers[record.method].add(record.quantizer)
    names = {
        id(record): record.label or _name(record, several_quantizers=len(quantizers[record.method] - {""}) > 1)
        for record in records
    }
    # Many records share few sets of parameters: each set is written as text once.
    keys = {id(record): repr(record.params) for record in records}
    params = {keys[id(record)]: record.params for record in records}
    texts = {key: {name: _as_json(value) for name, value in flattened(params[key]).items()} for key in params}
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, key in {(names[at], keys[at]) for at in names}:
        for param, text in texts[key].items():
            values[name][param].add(text)
    labels = {}
    for record in records:
        name = names[id(record)]
        varied = [
            f"{param.removeprefix('method.')}={text}"
            for param, text in texts[keys[id(record)]].items()
            if len(values[name][param]) > 1
        ]
        variant = f" [{', '.join(varied)}]" if varied else ""
        labels[id(record)] = f"{name}{variant}{_CONTROL_MARK if control_rank(record) else ''}"
    return labels


def marked_labels(records: Sequence[Record]) -> dict[int, str]:
    """Return the labels with the mark of their fidelity, of several the weakest."""
    labels = method_labels(records)
    marks: dict[str, str] = {}
    for fidelity, mark in FIDELITY_MARKS.items():
        for record in records:
            if record.fidelity == fidelity:
                marks.setdefault(labels[id(record)], mark)
    return {key: label + marks.get(label, "") for key, label in labels.items()}


def fidelity_notes(labels: Iterable[str]) -> list[str]:
    """Return a note for each mark at the end of some labels."""
    marks = {label[-1:] for label in labels}
    return [f"{mark} {note}" for mark, note in FIDELITY_NOTES.items() if mark in marks]


def _name(record: Record, *, several_quantizers: bool) -> str:
    """Return the method's name where the record holds no label."""
    method = record.method or "unknown"
    return f"{method}+{record.quantizer}" if several_quantizers and record.quantizer else method


def _as_json(value: object) -> str:
    return json.dumps(json_ready(value), sort_keys=True, default=str)
