"""Generators of bad input: odd characters, texts that are almost right, and data with one thing wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

ODD = "٣४３²½ⅷ\u212a\u0130\u0131\u017f\u200b\u00a0\ufeff\u202e\x00\x1b\n\r\t ,;:@+-_=?&%.\"'[]{}()"
"""Digits and letters that only look like those of ASCII (the sign of the kelvin lower-cases to k), spaces, signs."""
MORE = st.sampled_from([*ODD, "0", "9", "9" * 5_000, "[" * 3_000, "a" * 300, "nan", "inf", "1e999", "\ud800"])


def near(valid: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return texts that differ from valid ones in up to three places."""

    def change(text: str, edits: list[tuple[int, str, bool]]) -> str:
        for place, new, replace in edits:
            at = place % (len(text) + 1)
            text = text[:at] + new + text[at + replace :]
        return text

    edit = st.tuples(st.integers(0, 60), st.one_of(MORE, st.just(""), st.characters()), st.booleans())
    return st.builds(change, valid, st.lists(edit, max_size=3))


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


JUNK: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1, 2, 10**18, 10**30, 10**400, "", "x", "a\nb", "\x1b[31m", "\x00", "é"]
    ),
    st.sampled_from(
        [0.5, -0.0, 1e-320, 1e308, -1e308, 100.0, 100.5, [], {}, [[]], [1, "a"], {"": 1}, {"a": {"b": []}}]
    ),
    st.sampled_from(["a" * 300, "../x", "/etc/passwd", "~nosuch/x", "w4a4", "٣", "\u202eabc", "=HYPERLINK(1)", "<b>"]),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
NOT_FINITE = st.sampled_from([float("nan"), float("inf"), float("-inf")])
NOT_TEXT = st.sampled_from(["\udce9", "a\ud800b", "\udfff" * 3])
DEEP = st.sampled_from([40, 150, 900]).map(nested)


def places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the location of every value in nested data."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place for key, value in pairs for place in ((*at, key), *places(value, (*at, key)))]


@st.composite
def damaged(draw: st.DrawFn, good: Any, junk: st.SearchStrategy[Any] = JUNK, most: int = 2) -> Any:
    """Return a copy of good data in which up to `most` values are removed, replaced, renamed or given another type."""
    data = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, most))):
        options = places(data)
        if not options:
            break
        *parents, key = draw(st.sampled_from(options))
        holder = data
        for part in parents:
            holder = holder[part]
        change = draw(st.sampled_from(["remove", "replace", "replace", "replace", "wrap", "text", "rename"]))
        value = holder[key]
        if change == "replace":
            holder[key] = draw(junk)
        elif change == "wrap":
            holder[key] = [value]
        elif change == "text":
            holder[key] = str(value)
        elif change == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from([f"{key}s", str(key).upper(), "", "x.y", "ключ"]))] = holder.pop(key)
        else:
            del holder[key]
    return data


def only(errors: type[Exception] | tuple[type[Exception], ...], call: Callable[[], Any]) -> Any:
    """Return the result of a call, or None where it raised one of the errors; others pass."""
    try:
        return call()
    except errors as error:
        message = str(error)
    assert message, "an error without a message"
    return None


def is_json(data: Any) -> bool:
    """Check that data are plain JSON that is read as it was written."""
    return bool(json.loads(json.dumps(data, allow_nan=False)) == data)
