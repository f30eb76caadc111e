"""MkDocs hooks: formulas become MathML, and the configuration page comes from the config classes."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

import sfss_ray

sys.path.insert(0, str(Path(__file__).resolve().parent))

from config_page import config_tables

_CONFIG_MARK = "<!-- config classes -->"
_NAMES_MARK = "<!-- other public names -->"
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put generated text in place of its mark."""
    if _CONFIG_MARK in markdown:
        return markdown.replace(_CONFIG_MARK, config_tables())
    if _NAMES_MARK in markdown:
        return markdown.replace(_NAMES_MARK, _other_names(markdown))
    return markdown


def _other_names(page: str) -> str:
    """Return entries for the public names that a page does not place itself."""
    placed = set(re.findall(r"^::: sfss_ray\.(\w+)$", page, re.MULTILINE)) | {"SfssError"}
    return "\n\n".join(f"::: sfss_ray.{name}" for name in sfss_ray.__all__ if name not in placed)


def on_page_content(content: str, **_: Any) -> str:
    """Replace each formula by MathML, which browsers draw without a script."""
    return _FORMULA.sub(_as_mathml, content)


def _as_mathml(formula: re.Match[str]) -> str:
    display = "block" if formula["tag"] == "div" else "inline"
    return convert(html.unescape(formula["latex"]), display=display)
