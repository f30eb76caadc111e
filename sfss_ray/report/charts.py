"""Charts of a report as <svg> elements to be put inline into an HTML page.

Text stays text and takes the colour of the page around it, so that one chart reads on light, dark
and paper. Colours of rows are Okabe and Ito's, told apart by colour-blind readers, and belong to a
row's name: a row looks the same in every chart.
"""

from __future__ import annotations

import functools
import html
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from sfss_ray.report.tables import (
    KNOBS,
    baseline_and_answer,
    best_trial,
    class_changes,
    class_scores,
    is_number,
    signed,
)

_TEXT, _LINE, _BETTER, _WORSE = "#010203", "#010204", "#010205", "#010206"
_PAGE_COLOURS = {
    _TEXT: "currentColor",
    _LINE: "var(--line, #d0d0d0)",
    _BETTER: "var(--better, #117733)",
    _WORSE: "var(--worse, #b3261e)",
}
"""Stand-ins drawn by matplotlib -> colours that the page decides."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sfss_ray",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
    "legend.frameon": False,
}
_KNOWN_ROWS = {"source-only": "#8c8c8c", "adapted": "#0a84c6", "self-training": "#e69f00"}
_SPARE_COLOURS = ("#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#a89b00", "#7b61c4", "#6b4f3a")
_MARKERS = "osD^vP*X"
_CURVE_TITLES = {
    "loss": "total loss",
    "loss_seg": "segmentation loss",
    "loss_ins": "intra-instance contrast",
    "loss_cls": "intra-class contrast",
    "val_miou": "mIoU while training, %",
    "mask_information": "mask_information while training",
    "learning_rate": "learning rate",
}
MOST_POINTS = 150
_MOST_BARS = 3


@dataclass(frozen=True)
class Chart:
    """A titled <svg> element; `note` says what is not drawn, or is empty."""

    title: str
    svg: str
    note: str = ""


def _in_style(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Draw with this module's look; matplotlib's settings are as before afterwards."""

    @functools.wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


def row_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour per row name: fixed for the usual rows, then in order of first appearance."""
    others = [name for name in dict.fromkeys(names) if name not in _KNOWN_ROWS]
    spare = {name: _SPARE_COLOURS[k % len(_SPARE_COLOURS)] for k, name in enumerate(others)}
    return {name: _KNOWN_ROWS.get(name) or spare[name] for name in names}


def report_colours(report: Mapping[str, Any]) -> dict[str, str]:
    """The colours of all rows and curves of a report."""
    entries = [*(report.get("rows") or []), *(report.get("curves") or [])]
    return row_colours([entry["name"] for entry in entries])


@_in_style
def class_chart(
    report: Mapping[str, Any], order: Literal["change", "class"] = "change"
) -> Chart | None:
    """IoU per class of every row, with what changed from source-only; None without such numbers.

    order: "change" puts the class that gained most on top, "class" keeps the class set's order.
    Up to three rows are bars, more are markers. Classes without a number are named in the note.
    """
    classes = (report.get("class_set") or {}).get("classes") or []
    rows = [row for row in report.get("rows") or [] if row.get("per_class")]
    if not classes or not rows:
        return None
    scores = np.array([class_scores(row, len(classes)) for row in rows], dtype=float)
    present = np.flatnonzero(np.isfinite(scores).any(0))
    absent = [name for index, name in enumerate(classes) if index not in present]
    changes = class_changes(report)
    _, answer = baseline_and_answer(report)
    if order == "change":
        present = sorted(present, key=lambda k: -(changes[k] or 0))
    if len(present) == 0:
        return None
    figure, axes = _class_axes([classes[k] for k in present], len(rows))
    colours = report_colours(report)
    for index, row in enumerate(rows):
        values = scores[index, present]
        if len(rows) <= _MOST_BARS:
            _draw_bars(axes, values, index, len(rows), row["name"], colours[row["name"]])
        else:
            layer = 4 if row is answer else 3
            _draw_markers(axes, values, index, row["name"], colours[row["name"]], layer)
    _write_changes(axes, [changes[k] for k in present])
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.3)
    note = f"absent from the labels, so without a score: {', '.join(absent)}" if absent else ""
    return Chart("IoU per class, %", _svg(figure, "IoU per class"), note)


def _class_axes(names: list[str], num_rows: int) -> tuple[Figure, Axes]:
    per_class = 0.28 if num_rows > _MOST_BARS else 0.12 + 0.1 * num_rows
    legend_lines = -(-num_rows // 3)
    figure, axes = _figure(6.4, 0.6 + 0.2 * legend_lines + per_class * len(names))
    axes.set(xlim=(0, 100), ylim=(len(names) - 0.4, -0.6))
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("IoU, %")
    axes.grid(visible=False, axis="y")
    axes.tick_params(length=0)
    return figure, axes


def _draw_bars(
    axes: Axes, values: np.ndarray, index: int, count: int, name: str, colour: str
) -> None:
    thickness = 0.8 / count
    centres = np.arange(len(values)) - 0.4 + (index + 0.5) * thickness
    axes.barh(centres, np.nan_to_num(values), 0.9 * thickness, color=colour, label=name)


def _draw_markers(
    axes: Axes, values: np.ndarray, index: int, name: str, colour: str, layer: int
) -> None:
    marker = _MARKERS[index % len(_MARKERS)]
    heights = np.arange(len(values))
    axes.scatter(values, heights, s=26, c=colour, marker=marker, label=name, zorder=layer)


def _write_changes(axes: Axes, changes: Sequence[float | None]) -> None:
    """The change of each class in words at the right end, so that colour is never the only sign."""
    if all(value is None for value in changes):
        return
    for index, value in enumerate(changes):
        colour = _TEXT if not value else (_BETTER if value > 0 else _WORSE)
        place = {"x": 112, "y": index, "ha": "right", "va": "center", "weight": "bold"}
        axes.text(**place, s=signed(value), color=colour, clip_on=False)


@_in_style
def curve_charts(report: Mapping[str, Any]) -> list[Chart]:
    """A small chart per measured quantity over the steps, a line per curve; empty without curves.

    Curves of more than MOST_POINTS points are drawn as means of neighbouring ones.
    """
    curves = [curve for curve in report.get("curves") or [] if curve.get("points")]
    colours = report_colours(report)
    charts = [_curve_chart(curves, key, colours) for key in _CURVE_TITLES]
    return [chart for chart in charts if chart]


def _curve_chart(curves: list[dict], key: str, colours: Mapping[str, str]) -> Chart | None:
    lines = {curve["name"]: _series(curve["points"], key) for curve in curves}
    lines = {name: series for name, series in lines.items() if len(series)}
    if not lines:
        return None
    figure, axes = _figure(4.0, 2.5)
    for name, series in lines.items():
        drawn = _thinned(series)
        few = "o" if len(drawn) <= 12 else None
        axes.plot(
            *drawn.T, color=colours[name], label=name, linewidth=1.6, marker=few, markersize=4
        )
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))
    if len(lines) > 1:
        axes.legend(fontsize=8)
    title = _CURVE_TITLES[key]
    return Chart(title, _svg(figure, title))


def _series(points: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """(N, 2) steps and values of one quantity, points without it left out."""
    pairs = [(point.get("step"), point.get(key)) for point in points]
    return np.array([p for p in pairs if is_number(p[0]) and is_number(p[1])], float).reshape(-1, 2)


def _thinned(series: np.ndarray) -> np.ndarray:
    if len(series) <= MOST_POINTS:
        return series
    return np.array([part.mean(0) for part in np.array_split(series, MOST_POINTS)])


@_in_style
def trial_charts(report: Mapping[str, Any]) -> list[Chart]:
    """The search: score over each knob (log axes), then all knobs together; empty without scores.

    Filled = finished, hollow = stopped early, ringed star = the best trial. Trials without a
    score are counted in the note of the first chart.
    """
    trials = report.get("trials") or []
    scored = [
        trial
        for trial in trials
        if is_number(trial.get("score")) and all(is_number(trial.get(knob)) for knob in KNOBS)
    ]
    if not scored:
        return []
    name, best = report.get("score_name") or "score", best_trial(report)
    charts = [_knob_chart(scored, knob, name, best) for knob in KNOBS]
    missing = len(trials) - len(scored)
    note = f"not drawn, for want of a score: {missing} of {len(trials)} trials" if missing else ""
    charts[0] = Chart(charts[0].title, charts[0].svg, note)
    return [*charts, _parallel_chart(scored, name, best)]


def _knob_chart(trials: list[dict], knob: str, score_name: str, best: dict | None) -> Chart:
    figure, axes = _figure(5.2, 2.9)
    colours = _score_colours(trials)
    for trial, colour in zip(trials, colours, strict=True):
        face = colour if trial.get("status") == "finished" else "none"
        place = (_knob_position(trial, knob), trial["score"])
        axes.scatter(*place, s=42, facecolors=face, edgecolors=colour, linewidths=1.6, zorder=3)
        if trial is best:
            axes.scatter(*place, s=230, facecolors="none", edgecolors=_TEXT, linewidths=1.2)
            axes.scatter(*place, s=90, color=_TEXT, marker="*", zorder=4)
    axes.set(xscale="log", xlabel=_knob_label(knob), ylabel=score_name)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelrotation=30)
    title = f"{score_name} over {knob}"
    return Chart(title, _svg(figure, title))


def _parallel_chart(trials: list[dict], score_name: str, best: dict | None) -> Chart:
    """A line per trial through its three knobs to its score; every axis runs from least to most."""
    figure, axes = _figure(5.2, 2.9)
    columns = [[np.log10(_knob_position(trial, knob)) for trial in trials] for knob in KNOBS]
    columns.append([trial["score"] for trial in trials])
    heights = np.array([_unit_range(np.array(column)) for column in columns])
    for index, (trial, colour) in enumerate(zip(trials, _score_colours(trials), strict=True)):
        thickness, layer = (3.2, 4) if trial is best else (1.3, 3)
        axes.plot(range(4), heights[:, index], color=colour, linewidth=thickness, zorder=layer)
    axes.set(xlim=(-0.2, 3.2), ylim=(-0.05, 1.05))
    axes.set_xticks(range(4), ["temperature", "contrast\nweight", "1 - ema\nmomentum", score_name])
    axes.set_yticks([0, 1], ["least", "most"])
    title = "all knobs together (thick: the best trial)"
    return Chart(title, _svg(figure, title))


def _knob_position(trial: Mapping[str, Any], knob: str) -> float:
    """Where a trial stands on a knob's log axis: momentum by its gap to 1, zero at a tiny value."""
    value = 1 - trial[knob] if knob == "ema_momentum" else trial[knob]
    return max(float(value), 1e-7)


def _knob_label(knob: str) -> str:
    return "1 - ema_momentum (log)" if knob == "ema_momentum" else f"{knob} (log)"


def _score_colours(trials: list[dict]) -> np.ndarray:
    """viridis without its palest end, which white paper would swallow."""
    heights = _unit_range(np.array([trial["score"] for trial in trials], float))
    return matplotlib.colormaps["viridis"](0.1 + 0.75 * heights)


def _unit_range(values: np.ndarray) -> np.ndarray:
    spread = np.ptp(values)
    return (values - values.min()) / spread if spread > 0 else np.full(len(values), 0.5)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of a size in inches; the object API leaves pyplot's global state alone."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, label: str) -> str:
    """The figure as an inline <svg>: no prolog, metadata or addresses, colours left to the page."""
    written = io.StringIO()
    with warnings.catch_warnings():
        # the browser draws the text, so letters that matplotlib's own font lacks do no harm
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(written, format="svg", transparent=True)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    # matplotlib's <style> would reach the whole page; the page's own sets joins and caps
    unwanted = r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>"
    svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box, "matplotlib writes a viewBox"
    for stand_in, colour in _PAGE_COLOURS.items():
        body = body.replace(stand_in, colour)
    body = re.sub(r"font-family: [^;\"]*sans-serif", "font-family: inherit", body)
    return f'<svg role="img" aria-label="{html.escape(label)}" {view_box.group()}>{body}'
