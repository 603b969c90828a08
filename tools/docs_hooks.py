"""mkdocs hook: parameter, check and recipe tables from the code, and formulas as MathML.

`<!-- parameters: zeroq -->` becomes the table that `dfqbench methods show zeroq` prints.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from latex2mathml.converter import convert

_PARAMETERS = re.compile(r"^<!-- parameters: ([a-z-]+) -->$", re.MULTILINE)
_RECIPES = re.compile(r"^<!-- recipes: ([a-z-]+) -->$", re.MULTILINE)
_STRENGTHS = re.compile(r"^<!-- strengths: ([a-z-]+) -->$", re.MULTILINE)
_CHECKS = re.compile(r"^<!-- (quantizer |range rule )?checks -->$", re.MULTILINE)
_BLOCK = re.compile(r"^\$\$\n?(.+?)\n?\$\$$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<![\\`$\w])\$([^$\n`]+)\$(?!\w)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace tables and formulas outside fenced code."""
    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _replace(part) for part in parts)


def _replace(text: str) -> str:
    text = _PARAMETERS.sub(lambda match: parameter_table(match[1]), text)
    text = _CHECKS.sub(lambda match: check_rows((match[1] or "method").strip()), text)
    text = _RECIPES.sub(lambda match: recipe_table(match[1]), text)
    text = _STRENGTHS.sub(lambda match: strength_rows(match[1]), text)
    text = _BLOCK.sub(lambda match: f'<div class="formula">{convert(match[1], display="block")}</div>', text)
    return _INLINE.sub(lambda match: convert(match[1]), text)


def parameter_table(name: str) -> str:
    """Return the parameters of a method or quantizer as a Markdown table."""
    from dfqbench.cli.methods import describe
    from dfqbench.plugins import load_plugins

    rows = ["| parameter | default | unit | meaning | source |", "|---|---|---|---|---|"]
    for param in describe(name, load_plugins())["params"]:
        cells = [f"`{param['name']}`", f"`{param['default']}`", param["unit"], param["help"], param["source"]]
        rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def check_rows(kind: str) -> str:
    """Return the conformance checks of a `method`, `quantizer` or `range rule` as rows of a Markdown table."""
    from dfqbench.testing.conformance import CHECKS, QUANTIZER_CHECKS, RANGE_RULE_CHECKS

    checks = {"method": CHECKS, "quantizer": QUANTIZER_CHECKS, "range rule": RANGE_RULE_CHECKS}[kind]
    return "\n".join(f"| `{check.name}` | {check.title} |" for check in checks)


def strength_rows(name: str) -> str:
    """Return the strength of a quantizer's recipes as a Markdown table."""
    from dfqbench.cli.methods import describe, strength_table
    from dfqbench.plugins import load_plugins

    header, *rows = strength_table(describe(name, load_plugins())["strength"])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def recipe_table(name: str) -> str:
    """Return the recipes of a quantizer, with the values that differ from its defaults, as a Markdown table."""
    from dfqbench.plugins import load_plugins

    quantizer_cls = load_plugins().quantizer_class(name)
    defaults = dataclasses.asdict(quantizer_cls.params_type())
    rows = ["| recipe | differs from the defaults in |", "|---|---|"]
    for recipe, params in quantizer_cls.recipes.items():
        changed = {key: value for key, value in dataclasses.asdict(params).items() if value != defaults[key]}
        text = ", ".join(f"`{key}` = {value}" for key, value in changed.items()) or "nothing"
        rows.append(f"| `{name}:{recipe}` | {text} |")
    return "\n".join(rows)
