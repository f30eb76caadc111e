"""The charts of a report: IoU per class, training curves, and the trials of a search.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart. A row keeps its
colour in every chart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sfss_ray.config.space import short_names
from sfss_ray.report.comparison import class_changes, class_scores, searched_settings
from sfss_ray.report.formatting import format_change, is_number
from sfss_ray.report.report_record import Curve, RunRecord, TrialRow
from sfss_ray.report.setting_axis import SettingAxis
from sfss_ray.report.svg import (
    BETTER_COLOUR,
    TEXT_COLOUR,
    WORSE_COLOUR,
    in_report_style,
    inline_svg,
    new_figure,
)

_ROW_COLOURS = {
    "source-only": "#8c8c8c",
    "BatchNorm-only": "#56b4e9",
    "adapted": "#0a84c6",
    "teacher": "#7b61c4",
    "self-training": "#e69f00",
}
_SPARE_COLOURS = ("#009e73", "#cc79a7", "#d55e00", "#a89b00", "#6b4f3a")
_MARKERS = "osD^vP*X"
_CURVE_TITLES = {
    "loss": "total loss",
    "loss_seg": "segmentation loss",
    "loss_ins": "intra-instance contrast",
    "loss_cls": "intra-class contrast",
    "val_miou": "mIoU during training, %",
    "mask_information": "mask_information during training",
    "label_free_score": "label-free score that decides without labels",
    "learning_rate": "learning rate",
    "workers": "training workers",
}
MAX_POINTS = 150
"""Points of a drawn curve."""
_MAX_BARS = 3
"""Rows that the class chart draws as bars; more become markers."""


@dataclass(frozen=True)
class Chart:
    """A titled <svg> element."""

    title: str
    svg: str
    note: str = ""
    """Names what is not drawn, or is empty."""


def row_colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour per row name: fixed for the usual rows, then by order of first appearance."""
    unusual = [name for name in dict.fromkeys(names) if name not in _ROW_COLOURS]
    spare = {name: _SPARE_COLOURS[k % len(_SPARE_COLOURS)] for k, name in enumerate(unusual)}
    return {name: _ROW_COLOURS.get(name) or spare[name] for name in names}


def report_colours(record: RunRecord) -> dict[str, str]:
    """Return the colours of all rows and curves of a report by name."""
    return row_colours([entry.name for entry in (*record.rows, *record.curves)])


@in_report_style
def class_chart(record: RunRecord, order: Literal["change", "class"] = "change") -> Chart | None:
    """Draw the IoU per class of every row, and the change from source-only.

    Up to three rows are bars, more are markers. The note names classes that have no score.

    Args:
        record: The report; without IoU per class there is no chart.
        order: "change" puts the class that gained most on top, "class" keeps the class set's order.
    """
    classes = record.class_set.classes
    rows = [row for row in record.rows if row.per_class]
    if not classes or not rows:
        return None
    scores = np.array([class_scores(row, len(classes)) for row in rows], dtype=float)
    present = np.flatnonzero(np.isfinite(scores).any(0))
    absent = [name for index, name in enumerate(classes) if index not in present]
    changes = class_changes(record)
    if order == "change":
        present = sorted(present, key=lambda k: -(changes[k] or 0))
    if len(present) == 0:
        return None

    figure, axes = _class_axes([classes[k] for k in present], len(rows))
    colours = report_colours(record)
    for index, row in enumerate(rows):
        series = _ClassSeries(row.name, colours[row.name], index, scores[index, present])
        if len(rows) <= _MAX_BARS:
            _draw_bars(axes, series, len(rows))
        else:
            _draw_markers(axes, series, layer=4 if row is record.answer else 3)
    _write_changes(axes, [changes[k] for k in present])
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.3)
    note = f"absent from the labels, so without a score: {', '.join(absent)}" if absent else ""
    return Chart("IoU per class, %", inline_svg(figure, "IoU per class"), note)


@dataclass(frozen=True)
class _ClassSeries:
    """The IoUs of one row in the order of the chart's lines."""

    name: str
    colour: str
    index: int
    ious: np.ndarray


def _class_axes(names: list[str], num_rows: int) -> tuple[Figure, Axes]:
    per_class = 0.28 if num_rows > _MAX_BARS else 0.12 + 0.1 * num_rows
    legend_lines = -(-num_rows // 3)
    figure, axes = new_figure(6.4, 0.6 + 0.2 * legend_lines + per_class * len(names))
    axes.set(xlim=(0, 100), ylim=(len(names) - 0.4, -0.6))
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("IoU, %")
    axes.grid(visible=False, axis="y")
    axes.tick_params(length=0)
    return figure, axes


def _draw_bars(axes: Axes, series: _ClassSeries, num_rows: int) -> None:
    thickness = 0.8 / num_rows
    centres = np.arange(len(series.ious)) - 0.4 + (series.index + 0.5) * thickness
    lengths = np.nan_to_num(series.ious)
    axes.barh(centres, lengths, 0.9 * thickness, color=series.colour, label=series.name)


def _draw_markers(axes: Axes, series: _ClassSeries, layer: int) -> None:
    marker = _MARKERS[series.index % len(_MARKERS)]
    style = {"s": 26, "c": series.colour, "marker": marker, "zorder": layer}
    axes.scatter(series.ious, np.arange(len(series.ious)), label=series.name, **style)


def _write_changes(axes: Axes, changes: Sequence[float | None]) -> None:
    """Write each class's change at the right end, so that colour is never the only sign."""
    if all(change is None for change in changes):
        return
    for index, change in enumerate(changes):
        colour = TEXT_COLOUR if not change else (BETTER_COLOUR if change > 0 else WORSE_COLOUR)
        position = {"x": 112, "y": index, "ha": "right", "va": "center", "weight": "bold"}
        axes.text(**position, s=format_change(change), color=colour, clip_on=False)


@in_report_style
def curve_charts(record: RunRecord) -> list[Chart]:
    """Draw a small chart per logged quantity over the steps, a line per curve.

    A curve of more than MAX_POINTS points is drawn as means of neighbouring points. A quantity
    that no curve has gets no chart.
    """
    colours = report_colours(record)
    charts = [_curve_chart(record.curves, key, colours) for key in _CURVE_TITLES]
    return [chart for chart in charts if chart]


def _curve_chart(curves: Sequence[Curve], key: str, colours: Mapping[str, str]) -> Chart | None:
    lines = {curve.name: _series(curve, key) for curve in curves}
    lines = {name: series for name, series in lines.items() if len(series)}
    if not lines:
        return None
    figure, axes = new_figure(4.0, 2.5)
    for name, series in lines.items():
        points = _thinned(series)
        style = {"linewidth": 1.6, "markersize": 4, "marker": "o" if len(points) <= 12 else None}
        axes.plot(*points.T, color=colours[name], label=name, **style)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))
    if len(lines) > 1:
        axes.legend(fontsize=8)
    title = _CURVE_TITLES[key]
    return Chart(title, inline_svg(figure, title))


def _series(curve: Curve, key: str) -> np.ndarray:
    """Return (N, 2) steps and values of one quantity, without points that lack it."""
    pairs = [(point.get("step"), point.get(key)) for point in curve.points]
    return np.array([p for p in pairs if is_number(p[0]) and is_number(p[1])], float).reshape(-1, 2)


def _thinned(series: np.ndarray) -> np.ndarray:
    if len(series) <= MAX_POINTS:
        return series
    return np.array([part.mean(0) for part in np.array_split(series, MAX_POINTS)])


@in_report_style
def trial_charts(record: RunRecord) -> list[Chart]:
    """Draw the score over each knob (log axes), then all knobs together; empty without scores.

    Filled points are finished trials, hollow ones were stopped early, the ringed star is the best.
    The note of the first chart counts trials without a score.
    """
    settings = searched_settings(record.trials)
    scored = [
        trial
        for trial in record.trials
        if is_number(trial.score) and all(trial.values.get(name) is not None for name in settings)
    ]
    if not scored or not settings:
        return []
    score_name = record.score_name or "score"
    axes_of_settings = [
        SettingAxis.of(name, title, scored)
        for name, title in zip(settings, short_names(settings), strict=True)
    ]
    charts = [_knob_chart(scored, axis, score_name, record.best) for axis in axes_of_settings]
    missing = len(record.trials) - len(scored)
    if missing:
        note = f"not drawn because they have no score: {missing} of {len(record.trials)} trials"
        charts[0] = replace(charts[0], note=note)
    return [*charts, _parallel_chart(scored, axes_of_settings, score_name, record.best)]


def _knob_chart(
    trials: Sequence[TrialRow], setting: SettingAxis, score_name: str, best: TrialRow | None
) -> Chart:
    figure, axes = new_figure(5.2, 2.9)
    scores, colours = _scores(trials), _score_colours(trials)
    for trial, score, colour in zip(trials, scores, colours, strict=True):
        face = colour if trial.status == "finished" else "none"
        point = (setting.position(trial), score)
        axes.scatter(*point, s=42, facecolors=face, edgecolors=colour, linewidths=1.6, zorder=3)
        if trial is best:
            axes.scatter(*point, s=230, facecolors="none", edgecolors=TEXT_COLOUR, linewidths=1.2)
            axes.scatter(*point, s=90, color=TEXT_COLOUR, marker="*", zorder=4)
    axes.set(xlabel=setting.label, ylabel=score_name)
    setting.draw_ticks(axes)
    title = f"{score_name} over {setting.title}"
    return Chart(title, inline_svg(figure, title))


def _parallel_chart(
    trials: Sequence[TrialRow],
    settings: Sequence[SettingAxis],
    score_name: str,
    best: TrialRow | None,
) -> Chart:
    """Draw a line per trial through its settings to its score, each axis from lowest to highest."""
    figure, axes = new_figure(5.2, 2.9)
    columns = [[setting.height(trial) for trial in trials] for setting in settings]
    count = len(columns) + 1
    heights = np.array([_unit_range(np.array(column)) for column in [*columns, _scores(trials)]])
    for index, (trial, colour) in enumerate(zip(trials, _score_colours(trials), strict=True)):
        thickness, layer = (3.2, 4) if trial is best else (1.3, 3)
        axes.plot(range(count), heights[:, index], color=colour, linewidth=thickness, zorder=layer)
    axes.set(xlim=(-0.2, count - 0.8), ylim=(-0.05, 1.05))
    labels = [setting.label.removesuffix(" (log)") for setting in settings]
    axes.set_xticks(range(count), [name.replace("_", "\n") for name in (*labels, score_name)])
    axes.set_yticks([0, 1], ["lowest", "highest"])
    title = "all settings together (thick: the best trial)"
    return Chart(title, inline_svg(figure, title))


def _scores(trials: Sequence[TrialRow]) -> np.ndarray:
    return np.array([trial.score for trial in trials], float)


def _score_colours(trials: Sequence[TrialRow]) -> np.ndarray:
    """Return viridis colours by score, without its palest end, which is invisible on white paper."""
    return matplotlib.colormaps["viridis"](0.1 + 0.75 * _unit_range(_scores(trials)))


def _unit_range(column: np.ndarray) -> np.ndarray:
    """Scale numbers to 0..1; equal numbers become 0.5."""
    spread = np.ptp(column)
    return (column - column.min()) / spread if spread > 0 else np.full(len(column), 0.5)
