"""The axis of a searched setting in a chart: logarithmic, linear, or one place per value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sfss_ray.report.formatting import format_knob, is_number
from sfss_ray.report.report_record import TrialRow

_SMALLEST = 1e-7  # the place of zero on a logarithmic axis
_LOG_FROM = 10.0  # ratio of the largest to the smallest value


@dataclass(frozen=True)
class SettingAxis:
    """Places the values of one setting on an axis."""

    name: str
    """Dotted."""
    title: str
    """Short name."""
    words: tuple[Any, ...] = ()
    """The values in their order, where they are not numbers."""
    is_gap: bool = False
    """Whether 1 - value is drawn, as for momenta close to 1."""
    is_log: bool = False

    @staticmethod
    def of(name: str, title: str, trials: Sequence[TrialRow]) -> SettingAxis:
        """Choose the axis that suits the values of the trials."""
        values = [trial.values[name] for trial in trials]
        if not all(is_number(value) for value in values):
            return SettingAxis(name, title, words=tuple(sorted(set(values), key=str)))
        numbers = np.array(values, float)
        is_gap = name.endswith("momentum") and bool((numbers <= 1).all())
        placed = 1 - numbers if is_gap else numbers
        smallest = max(float(placed.min()), 0.0)
        spans_orders = smallest > 0 and float(placed.max()) / smallest >= _LOG_FROM
        return SettingAxis(name, title, is_gap=is_gap, is_log=is_gap or spans_orders)

    @property
    def label(self) -> str:
        """What is written below the axis."""
        label = f"1 - {self.title}" if self.is_gap else self.title
        return f"{label} (log)" if self.is_log else label

    def position(self, trial: TrialRow) -> float:
        """Return where a trial is drawn. Zero has a place on a logarithmic axis too."""
        value = trial.values[self.name]
        if self.words:
            return float(self.words.index(value))
        placed = 1 - float(value) if self.is_gap else float(value)
        return max(placed, _SMALLEST) if self.is_log else placed

    def height(self, trial: TrialRow) -> float:
        """Return a trial's position on a linear scale."""
        position = self.position(trial)
        return float(np.log10(position)) if self.is_log else position

    def draw_ticks(self, axes: Axes) -> None:
        """Write the values along the horizontal axis."""
        if self.words:
            axes.set_xticks(range(len(self.words)), [format_knob(word) for word in self.words])
            axes.set_xlim(-0.5, len(self.words) - 0.5)
            return
        if self.is_log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
        axes.tick_params(axis="x", labelrotation=30)
