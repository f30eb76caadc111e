"""The plan of a run, as values and as lines for people."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from sfss_ray.runtime.progress import duration

_HEAD = (
    f"  {'stage':<12}{'work':>15}{'each':>11}{'at once':>9}{'time':>11}{'memory':>11}{'disk':>10}"
)


@dataclass(frozen=True)
class Stage:
    """The cost of one stage on this machine."""

    name: str
    units: int
    """Images, or steps over all trials."""
    unit: str
    unit_seconds: float
    at_once: int
    """Processes that share the units here."""
    memory_mb: float
    """Of one process."""
    disk_mb: float
    note: str = ""

    @property
    def seconds(self) -> float:
        """Of the whole stage."""
        return math.ceil(self.units / self.at_once) * self.unit_seconds


@dataclass(frozen=True)
class Plan:
    """What a run would do. Estimates come from a measurement of seconds: take them as such."""

    found: dict[str, str]
    """Input -> what was found."""
    missing: dict[str, str]
    """Input -> why it cannot be used. A run with any of these is refused."""
    device: str
    class_set: str
    """Of the source model; empty without one."""
    images: int
    held_out: int
    """Of the images; label-free scores look at them, training does not."""
    labelled: int
    masks_to_make: int
    num_steps: int
    batch_size: int
    crop_size: tuple[int, int]
    trials: int
    """0 without a search; the best one's training comes on top."""
    stages: tuple[Stage, ...]
    not_measured: tuple[str, ...]
    free_mb: float
    """Free where the output goes."""
    seconds: float
    """That planning took."""

    @property
    def total_seconds(self) -> float:
        """Of the measured stages, one after the other."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def disk_mb(self) -> float:
        """That the output folder will need."""
        return sum(stage.disk_mb for stage in self.stages)

    @property
    def ready(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    def lines(self) -> list[str]:
        """The plan for people."""
        shown = [f"  found    {name}: {text}" for name, text in self.found.items()]
        shown += [f"  MISSING  {name}: {text}" for name, text in self.missing.items()]
        height, width = self.crop_size
        training = f"{self.num_steps} steps of {self.batch_size} crops {height}x{width}"
        runs = f"{self.trials} trials and a last training of" if self.trials else "a training of"
        shown += [
            "",
            f"target images: {self.images}, {self.held_out} of them held out for label-free scores;"
            f" labelled: {self.labelled}",
            f"masks to make: {self.masks_to_make}",
            f"training: {runs} {training}",
            "",
            f"estimate for this machine ({self.device}, {os.cpu_count()} CPUs):",
        ]
        shown += [_HEAD] if self.stages else []
        shown += [_row(stage) for stage in self.stages]
        shown += [f"  {text}" for text in self.not_measured]
        shown.append(
            f"  in all {duration(self.total_seconds)}, {self.disk_mb:.0f} MB of disk"
            f" ({self.free_mb:.0f} MB free)"
        )
        if self.disk_mb > self.free_mb:
            shown.append("  WARNING: the disk is too small")
        count = len(self.missing)
        end = (
            "ready: nothing is missing" if self.ready else f"not ready: {count} missing, see above"
        )
        return [*shown, "", f"{end} (planned in {self.seconds:.0f} s, nothing was started)"]


def _row(stage: Stage) -> str:
    work = f"{stage.units} {stage.unit}"
    cells = f"  {stage.name:<12}{work:>15}{stage.unit_seconds:>9.2f} s{stage.at_once:>9}"
    cells += f"{duration(stage.seconds):>11}{stage.memory_mb:>8.0f} MB{stage.disk_mb:>7.0f} MB"
    return cells + (f"  {stage.note}" if stage.note else "")
