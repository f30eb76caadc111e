"""Drawing matplotlib figures as inline <svg> elements that take the colours of the page.

Text stays text, so that one chart reads on light, dark and paper.
"""

from __future__ import annotations

import functools
import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TEXT_COLOUR, LINE_COLOUR = "#010203", "#010204"
BETTER_COLOUR, WORSE_COLOUR = "#010205", "#010206"
_PAGE_COLOURS = {
    TEXT_COLOUR: "currentColor",
    LINE_COLOUR: "var(--line, #d0d0d0)",
    BETTER_COLOUR: "var(--better, #117733)",
    WORSE_COLOUR: "var(--worse, #b3261e)",
}
"""Placeholder colours that matplotlib draws with -> colours that the page decides."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sfss_ray",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": TEXT_COLOUR,
    "axes.labelcolor": TEXT_COLOUR,
    "axes.edgecolor": LINE_COLOUR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE_COLOUR,
    "grid.linewidth": 0.6,
    "xtick.color": LINE_COLOUR,
    "ytick.color": LINE_COLOUR,
    "xtick.labelcolor": TEXT_COLOUR,
    "ytick.labelcolor": TEXT_COLOUR,
    "legend.frameon": False,
}


def in_report_style(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a drawing function to use the report's style; matplotlib's settings are restored."""

    @functools.wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Create a figure of a size in inches, without pyplot and its global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def inline_svg(figure: Figure, label: str) -> str:
    """Return the figure as an <svg> element without prolog, metadata and addresses.

    Args:
        figure: Drawn with the colours of this module where the page decides.
        label: Description for screen readers.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The browser draws the text, so glyphs that matplotlib's own font lacks do no harm.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # matplotlib's <style> would apply to the whole page. The page sets joins and caps itself.
    unwanted = r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>"
    svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box, "matplotlib writes a viewBox"
    for drawn_colour, page_colour in _PAGE_COLOURS.items():
        body = body.replace(drawn_colour, page_colour)
    body = re.sub(r"font-family: [^;\"]*sans-serif", "font-family: inherit", body)
    return f'<svg role="img" aria-label="{html.escape(label)}" {view_box.group()}>{body}'
