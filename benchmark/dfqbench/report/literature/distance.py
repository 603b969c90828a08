"""The distance between the protocol of a published number and that of a run, in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from dfqbench.quant.scheme import PROTOCOLS, Placement
from dfqbench.report.literature.protocol_facts import AS_OTHERS, BEST, FAMILY, phrase
from dfqbench.report.literature.published import PublishedNumber
from dfqbench.report.record_access import range_rule
from dfqbench.run.store.record import Record

SAME = "same protocol as far as stated"
_PLACEMENTS = {Placement.ACTIVATION_OUTPUT: FAMILY[0], Placement.LAYER_INPUT: "layer inputs"}
_HERE = {AS_OTHERS: "as the others", "8": "8-bit", "last": "the last", BEST: "the best"}


def differences(records: Sequence[Record], number: PublishedNumber) -> list[str]:
    """Return what the source did otherwise than a run, for example `fine-tuned as IntraQ (here calibrate)`.

    What the source does not state, and what the records do not hold, is not compared.

    Args:
        records: the finished seeds of one method, model and scheme.
        number: about the same method, model, data set and bits.
    """
    record, stated = records[0], dataclasses.replace(number.stated, recipe=number.recipe)
    if stated.first_last == str(record.scheme.w_bits):
        stated = dataclasses.replace(stated, first_last=AS_OTHERS)
    phrases = [stated.other] if stated.other else []
    if record.scheme.mixed is not None:
        phrases.append(f"one width for all weights (here mixed precision, {record.scheme.mixed.get('budget')})")
    for name, here in _facts(records).items():
        printed = getattr(stated, name)
        same = same_recipe(record, number) if name == "recipe" else printed == here
        if printed and here and not same:
            phrases.append(f"{phrase(name, printed)} (here {_HERE.get(here, here)})")
    if record.dataset.subset:
        phrases.append(f"all evaluation images (here {record.dataset.subset})")
    return phrases


def same_recipe(record: Record, number: PublishedNumber) -> bool:
    """Return whether the run's quantizer, and its recipe where the source names one, are those of the source.

    A number that names no quantizer is about a plugin's method: the method's own is meant.
    """
    if not number.quantizer:
        return not record.cross
    name, recipe = _quantizer(record)
    return name == number.quantizer and number.recipe.partition(" as ")[2].lower() in ("", recipe)


def not_stated(numbers: Iterable[PublishedNumber]) -> list[str]:
    """Return names of the facts that one source or another does not state."""
    return list(dict.fromkeys(name for number in numbers for name in number.stated.not_stated))


def _facts(records: Sequence[Record]) -> dict[str, str]:
    """Return how a cell was quantized, in the words of `protocols.csv`; empty where its records do not say."""
    record = records[0]
    parameters = record.params.get("quantizer") or {}
    name, recipe = _quantizer(record)
    calibrated = name == "calibrate"
    images = parameters.get("images") if calibrated else None
    if images is None and record.source_kind == "fixed":
        images = record.source_images
    oracle = all(seed.oracle is not None for seed in records)
    return _scheme_facts(record) | {
        "ranges": range_rule(record),
        "recipe": name if calibrated or not recipe else f"{name}:{recipe}",
        "images": str(images or ""),
        "selection": "" if calibrated else BEST if oracle else "last",
        "weights": (record.model.ref or "").rpartition(":")[0],
    }


def _scheme_facts(record: Record) -> dict[str, str]:
    """Return operands, and bits of the first and last layer; empty for a protocol that is not known."""
    scheme = record.scheme
    known = PROTOCOLS.get(scheme.protocol or scheme.label.partition("@")[2])
    placement = scheme.details.get("placement", known and known.placement)
    ends = [scheme.details.get(f"{end}_bits", known and getattr(known, f"{end}_bits")) for end in ("first", "last")]
    if placement not in _PLACEMENTS:
        return {"operands": "", "first_last": ""}
    words = dict.fromkeys(AS_OTHERS if bits in (None, scheme.w_bits) else str(bits) for bits in ends)
    last_input = scheme.details.get("last_input_bits", known and known.last_input_bits)
    if last_input and [*words] == [AS_OTHERS]:
        words = {f"{last_input}-bit input of the last layer": None}
    return {"operands": _PLACEMENTS[Placement(placement)], "first_last": " and ".join(words)}


def _quantizer(record: Record) -> tuple[str, str]:
    """Return names of quantizer and recipe; a method's own recipe has the method's name."""
    name, _, recipe = record.quantizer.partition(":")
    return name, recipe or record.recipe or ("" if record.cross else record.method)
