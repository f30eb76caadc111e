"""The plan of a run, as values and as lines for people."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from sfss_ray.runtime.progress import duration

_HEADER = (
    f"  {'stage':<12}{'work':>15}{'each':>11}{'at once':>9}{'time':>11}{'memory':>11}{'disk':>10}"
)


@dataclass(frozen=True)
class Stage:
    """The estimated cost of one stage on this machine."""

    name: str
    units: int
    """Images, or steps over all trials."""
    unit: str
    unit_seconds: float
    at_once: int
    """Processes that share the units here."""
    memory_mb: float
    """Memory of one process."""
    disk_mb: float
    note: str = ""

    @property
    def seconds(self) -> float:
        """Estimated time of the whole stage."""
        return math.ceil(self.units / self.at_once) * self.unit_seconds


@dataclass(frozen=True)
class Plan:
    """The work of a run and its cost; estimates come from measurements of a few seconds."""

    found: dict[str, str]
    """Input -> its description."""
    missing: dict[str, str]
    """Input -> its problem. A run with a missing input is refused."""
    device: str
    """Device of the estimates, 'cpu' or 'cuda'."""
    class_set: str
    """Class set of the source model; empty without one."""
    images: int
    """Target images."""
    held_out: int
    """Target images that are kept from training, for label-free scores."""
    labelled: int
    """Labelled images to score on."""
    masks_to_make: int
    num_steps: int
    batch_size: int
    crop_size: tuple[int, int] | None
    """(height, width); None where it is to be chosen from images that are missing."""
    trials: int
    """Trials of a search, 0 without one; the training with the best values comes on top."""
    stages: tuple[Stage, ...]
    not_measured: tuple[str, ...]
    """Lines on stages that could not be measured."""
    free_mb: float
    """Free space on the disk of the output folder."""
    seconds: float
    """Time that planning took."""

    @property
    def total_seconds(self) -> float:
        """Estimated time of the measured stages, one after the other."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def disk_mb(self) -> float:
        """Estimated size of the output folder."""
        return sum(stage.disk_mb for stage in self.stages)

    @property
    def ready(self) -> bool:
        """Whether no input is missing."""
        return not self.missing

    def lines(self) -> list[str]:
        """Return the plan for people."""
        lines = [f"  found    {name}: {description}" for name, description in self.found.items()]
        lines += [f"  MISSING  {name}: {problem}" for name, problem in self.missing.items()]
        training = f"{self.num_steps} steps of {self.batch_size} crops"
        training += f" {self.crop_size[0]}x{self.crop_size[1]}" if self.crop_size else ""
        runs = f"{self.trials} trials and a last training of" if self.trials else "a training of"
        lines += [
            "",
            f"target images: {self.images}, {self.held_out} of them held out for label-free scores;"
            f" labelled: {self.labelled}",
            f"masks to make: {self.masks_to_make}",
            f"training: {runs} {training}",
            "",
            f"estimate for this machine ({self.device}, {os.cpu_count()} CPUs):",
        ]
        lines += [_HEADER] if self.stages else []
        lines += [_row(stage) for stage in self.stages]
        lines += [f"  {line}" for line in self.not_measured]
        # In object storage there is no end of space.
        free = f" ({self.free_mb:.0f} MB free)" if math.isfinite(self.free_mb) else ""
        lines.append(f"  total {duration(self.total_seconds)}, {self.disk_mb:.0f} MB of disk{free}")
        if self.disk_mb > self.free_mb:
            lines.append("  WARNING: the disk is too small")
        count = len(self.missing)
        verdict = (
            "ready: nothing is missing" if self.ready else f"not ready: {count} missing, see above"
        )
        return [*lines, "", f"{verdict} (planned in {self.seconds:.0f} s, nothing was started)"]


def _row(stage: Stage) -> str:
    work = f"{stage.units} {stage.unit}"
    cells = f"  {stage.name:<12}{work:>15}{stage.unit_seconds:>9.2f} s{stage.at_once:>9}"
    cells += f"{duration(stage.seconds):>11}{stage.memory_mb:>8.0f} MB{stage.disk_mb:>7.0f} MB"
    return cells + (f"  {stage.note}" if stage.note else "")
