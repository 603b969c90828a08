"""Make the pictures of the documentation from a run, with a headless Chromium: its table and its report.

`python -m tools.screenshots RUN [FOLDER]` from the root of the checkout: RUN is the folder of a run, and the pictures
go into FOLDER, by default docs/assets.
"""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text
from tests.report.browser import Browser, browsing, chromium

WIDTH, HEIGHT = 1400, 1620  # of the report's picture
COLUMNS = 106  # of the terminal
VALUES = ("--value", "top1")  # of the table: the networks stand side by side
FIRST_NETWORK = """
const choice = document.querySelector('select');
if (choice) { choice.selectedIndex = 1; choice.dispatchEvent(new Event('change')); }
"""


def shoot(browser: Browser, file: Path, element: str) -> bytes:
    """Return the PNG of an element of a file, cut off at `HEIGHT`, with the rows of the page's first network."""
    browser.open(file, WIDTH, HEIGHT)
    browser.run(FIRST_NETWORK)
    box = browser.run(f"document.querySelector('{element}').getBoundingClientRect().toJSON()")
    clip = {key: box[key] for key in ("x", "y", "width")} | {"height": min(box["height"], HEIGHT), "scale": 1}
    shot = browser.send("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
    return base64.b64decode(shot["data"])


def dfqbench(verb: str, run: Path, *arguments: str) -> str:
    """Return what a command about the run prints."""
    command = [sys.executable, "-m", "dfqbench", verb, run.name, "--out", str(run.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - our own program


def terminal(command: str, output: str) -> str:
    """Return a terminal with a command and its output, as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text(f"$ {command}", style="bold"))
    console.print(Text(output))
    return console.export_svg(title="dfqbench")


def main(run: Path, folder: Path) -> None:
    """Write `table.png` and `report.png`."""
    program = chromium()
    if program is None:
        sys.exit("no Chromium on the path; name one in DFQBENCH_CHROMIUM")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, browsing(program, Path(name)) as browser:
        table, page = Path(name) / "table.html", Path(name) / "report.html"
        command = " ".join(("dfqbench table", run.name, *VALUES))
        table.write_text(terminal(command, dfqbench("table", run, *VALUES)), encoding="utf-8")
        dfqbench("report", run, "--to", str(page))
        for file, element in ((table, "svg"), (page, "main")):
            (folder / f"{file.stem}.png").write_bytes(shoot(browser, file, element))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs/assets"))
