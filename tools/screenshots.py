"""Make the screenshots of a run's report: `python -m tools.screenshots RUN [FOLDER]`, with a headless Chromium.

RUN is the folder of a run with a `report.html`; the pictures go into FOLDER, by default docs/assets.
"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

from tests.report.browser import Browser, browsing, chromium

SHOTS = {"report": (1400, "main", 1500), "report-phone": (390, "main", 844)}
"""Pictures by name: width of the window, the element that is shown, and the most height in pixels."""


def shoot(browser: Browser, page: Path, width: int, element: str, height: int) -> bytes:
    """Return the PNG of an element of a page."""
    browser.open(page, width, height)
    box = browser.run(f"document.querySelector('{element}').getBoundingClientRect().toJSON()")
    clip = {key: box[key] for key in ("x", "y", "width")} | {"height": min(box["height"], height), "scale": 1}
    shot = browser.send("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
    return base64.b64decode(shot["data"])


def main(run: str, folder: str = "docs/assets") -> None:
    """Write every picture of `SHOTS`."""
    program = chromium()
    if program is None:
        sys.exit("no Chromium on the path; name one in DFQBENCH_CHROMIUM")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        browsing(program, Path(profile)) as browser,
    ):
        for name, (width, element, height) in SHOTS.items():
            file = Path(folder) / f"{name}.png"
            file.write_bytes(shoot(browser, Path(run) / "report.html", width, element, height))
            print(file)  # noqa: T201 - a script


if __name__ == "__main__":
    main(*sys.argv[1:])
