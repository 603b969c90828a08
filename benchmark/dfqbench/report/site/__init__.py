"""The report: one HTML page that holds everything, reads without a script and needs no network."""

from __future__ import annotations

from dfqbench.report.site.page import report_page

__all__ = ["report_page"]
