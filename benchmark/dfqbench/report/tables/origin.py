"""The origin of students: the recipe that made them, their range rule, and how many images they were made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dfqbench.report.formatting import ABSENT
from dfqbench.report.record_access import range_rule
from dfqbench.run.store.record import Record

OWN = "own"
LIVE = "live"
MEANING: Mapping[str, str] = {
    "recipe": f"recipe: quantizer and recipe that made the student ({OWN}: a procedure of the method's own)",
    "range": "range: rule of the activation ranges",
    "images": f"images: different ones that the student was made from, at most ({LIVE}: a generator made new ones)",
}
"""Headers of an origin's columns, and what each means."""


@dataclass(frozen=True, slots=True)
class Origin:
    """How some students were made, in words.

    Attributes:
        recipe: such as `distill:gdfq`, `calibrate` or `own`.
        range: such as `minmax` or `percentile:99.9`; `-`: not known.
        images: such as `1,024` or `live`; `-`: not known.
    """

    recipe: str
    range: str
    images: str

    @property
    def words(self) -> str:
        """For example `calibrate, minmax ranges, 64 images`."""
        counted = self.images[:1].isdigit()
        images = f"{self.images} images" if counted else "live images" if self.images == LIVE else self.images
        ranges = ABSENT if self.range == ABSENT else f"{self.range} ranges"
        return ", ".join(part for part in (self.recipe, ranges, images) if part != ABSENT) or ABSENT


def recipe_name(record: Record) -> str:
    """Return quantizer and recipe as they are typed after `method+`; empty where the record does not hold them."""
    named = record.recipe and ":" not in record.quantizer
    return f"{record.quantizer}:{record.recipe}" if named else record.quantizer


def origin(records: Iterable[Record]) -> Origin:
    """Return the origin of the students of some records; where they differ, each value in order."""
    records = list(records)
    return Origin(_listed(map(_recipe, records)), _listed(map(range_rule, records)), _counts(records))


def compared(records: Iterable[Record]) -> tuple[Origin, list[str]]:
    """Return what is known and the same of all students, `-` for the rest, and which of `MEANING` differ."""
    origins = [origin([record]) for record in records]
    known = {name: {getattr(one, name) for one in origins} - {ABSENT} for name in MEANING}
    same = {name: min(values) if len(values) == 1 else ABSENT for name, values in known.items()}
    return Origin(**same), [name for name, values in known.items() if len(values) > 1]


def without_recipe(label: str, records: Iterable[Record]) -> str:
    """Return a method's label without the recipe of its cross and its range rule, which are shown beside it."""
    records = list(records)
    names = {recipe_name(record) for record in records} - {""}
    if len(names) == 1:
        label = label.replace(f"+{names.pop()}", "", 1)
    rule = json.dumps(records[0].range) if records else ""
    # One of several parameters in brackets, or the only one.
    for text in (f"quantizer.range={rule}, ", f", quantizer.range={rule}", f" [quantizer.range={rule}]"):
        label = label.replace(text, "", 1)
    return label


def changed_recipes(records: Iterable[Record]) -> list[str]:
    """Return the parameters that differ from the recipes', with their values."""
    return sorted(
        {
            f"{record.quantizer}.{name}={record.params.get('quantizer', {}).get(name)}"
            for record in records
            for name in _changes(record)
        }
    )


def _recipe(record: Record) -> str:
    if record.own_quantize:
        return OWN
    return recipe_name(record) + (" (changed)" if _changes(record) else "")


def _changes(record: Record) -> list[str]:
    """Return the parameters that are not the recipe's, but for the range rule, which is shown by itself."""
    return [name for name in record.recipe_changes if name != "range"]


def _counts(records: Sequence[Record]) -> str:
    # A generator that was trained alone is drawn from once, as a fixed set of images is.
    live = [r.source_kind == LIVE and "generator_alone" not in r.flags and r.used_images != 0 for r in records]
    used = [r.used_images for r, is_live in zip(records, live, strict=True) if not is_live]
    numbers = sorted({number for number in used if number is not None})
    counted = " to ".join(f"{number:,}" for number in dict.fromkeys([*numbers[:1], *numbers[-1:]]))
    return _listed([counted, LIVE if any(live) else ""])


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(filter(None, texts))) or ABSENT
