"""Claims beside measurements, as fields that every form prints."""

from __future__ import annotations

from dfqbench.report.page import Judged, Page
from dfqbench.report.values import ABSENT

CLAIM_HEADERS = ("column", "measured", "claimed", "drop", "verdict", "source")


def claim_fields(judged: Judged) -> list[str]:
    """Names of the place, what was measured, what is claimed, the verdict, and where it was printed."""
    verdict = judged.verdict
    claim = verdict.claim
    best = claim.selection == "best"
    measured = ABSENT if verdict.measured is None else f"{verdict.measured:.2f}{' (oracle)' if best else ''}"
    granted = "" if verdict.tolerance is None else f" (within {verdict.tolerance:.2f})"
    word = verdict.word + (granted if verdict.word == "reproduced" else "")
    return [
        *judged.place,
        measured,
        f"{claim.top1:.2f}{' (best epoch)' if best else ''}",
        ABSENT if claim.drop is None else f"{claim.drop:.2f}",
        word,
        claim.reported_in,
    ]


def unjudged(page: Page) -> str:
    """What to say where no claim is about the page's cells."""
    return f"No published number is known for the cells of this table ({page.title})."
