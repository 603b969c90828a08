"""Text from plugin code and other files: valid UTF-8, and of limited length."""

from __future__ import annotations

from typing import Any

MESSAGE = 2_000
"""Most characters of a message."""
TRACEBACK = 20_000
"""Most characters of a traceback."""


def shortened(text: str, most: int = MESSAGE) -> str:
    """Return valid text, of a longer one the head and the tail, together `most` characters."""
    if len(text) > most:
        text = f"{text[: most // 2]} [... {len(text) - most:,} characters are left out ...] {text[-(most // 2) :]}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def valid(data: Any) -> Any:
    """Return JSON data with its lone surrogates, which UTF-8 cannot encode, written as escapes."""
    if type(data) is str:
        return shortened(data, len(data))
    if isinstance(data, dict):
        return {valid(key): valid(value) for key, value in data.items()}
    return [valid(value) for value in data] if isinstance(data, list) else data
