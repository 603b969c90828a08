"""Claims beside measurements, as fields that every form prints."""

from __future__ import annotations

from dfqbench.report.page import Judged, Page
from dfqbench.report.values import ABSENT

_HEADERS = ("measured", "claimed", "claimed drop", "verdict", "source")
RULE = (
    "verdict: what was done comes first (other budget, protocol, parameters or weights); then reproduced within "
    "max(0.5, 2 sqrt(se^2 + sd^2)) points, with the binomial error and the deviation over seeds; else below or above"
)
"""What a reader must know of verdicts."""


def claim_headers(page: Page) -> tuple[str, ...]:
    """Headers of `claim_fields`."""
    return (*page.heads, ", ".join(page.across), *_HEADERS)


def claim_alignment(page: Page) -> list[str]:
    """`left` or `right` for each of the headers."""
    return [*["left"] * (len(page.heads) + 1), "right", "right", "right", "left", "left"]


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
