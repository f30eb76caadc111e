"""Figures as inline <svg>: no trace of matplotlib's document, colours of the page."""

import matplotlib
import pytest

from sfss_ray.report.svg import (
    BETTER_COLOUR,
    LINE_COLOUR,
    TEXT_COLOUR,
    WORSE_COLOUR,
    in_report_style,
    inline_svg,
    new_figure,
)


@in_report_style
def drawing(**text) -> str:
    figure, axes = new_figure(2, 1)
    axes.plot([0, 1], [0, 1])
    if text:
        axes.text(0, 0, **text)
    return inline_svg(figure, "a <b>")


def test_the_element_stands_alone():
    svg = drawing()
    assert svg.startswith('<svg role="img" aria-label="a &lt;b&gt;" viewBox="0 0 144 72">')
    assert svg.rstrip().endswith("</svg>")
    for trace in ("<?xml", "<metadata", "<style", "<!--", "xmlns", "http"):
        assert trace not in svg


@pytest.mark.parametrize(
    ("colour", "of_page"),
    [
        (TEXT_COLOUR, "currentColor"),
        (LINE_COLOUR, "var(--line, #d0d0d0)"),
        (BETTER_COLOUR, "var(--better, #117733)"),
        (WORSE_COLOUR, "var(--worse, #b3261e)"),
    ],
)
def test_placeholder_colours_become_those_of_the_page(colour, of_page):
    svg = drawing(s="note", color=colour)
    line = next(line for line in svg.splitlines() if ">note<" in line)
    assert of_page in line
    assert colour not in svg


def test_text_stays_text_in_the_font_of_the_page():
    svg = drawing(s="道路 $x$")
    assert "道路 $x$" in svg
    assert "font-family: inherit" in svg


def test_settings_are_restored_when_drawing_fails():
    @in_report_style
    def fail():
        assert matplotlib.rcParams["svg.hashsalt"] == "sfss_ray"
        raise RuntimeError

    before = dict(matplotlib.rcParams)
    with pytest.raises(RuntimeError):
        fail()
    assert dict(matplotlib.rcParams) == before
