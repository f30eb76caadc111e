"""What a run sends to its trackers: masks, steps of trainings, trials and the report."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sfss_ray.config import Config, flatten
from sfss_ray.config.space import short_names
from sfss_ray.masks.summary import MaskSummary
from sfss_ray.report.report_record import RunRecord, TrialRow
from sfss_ray.report.tables import results_table
from sfss_ray.runtime.progress import ProgressSink
from sfss_ray.storage.files import file_on_disk
from sfss_ray.storage.places import Place
from sfss_ray.tracking.tracker import Tracker, TrackerLike, create_trackers

TRIAL_NUMBERS = ("steps", "miou", "score")
ROW_NUMBERS = (
    "miou",
    "pixel_accuracy",
    "mask_information",
    "balanced_mask_information",
    "anchored_information",
    "entropy",
    "agreement",
    "neighbourhood_density",
    "predicted_classes",
)


class RunTracking:
    """The trackers of one run, called one after the other in the driver process.

    A tracker that raises is reported once and dropped, so that a server that is down costs one
    timeout and never the run.

    Args:
        trackers: Trackers that are not started yet.
        progress: Called with the line that reports a dropped tracker.
    """

    def __init__(self, trackers: Sequence[Tracker], progress: ProgressSink):
        self._active = list(trackers)
        self._progress = progress
        # Records come from the thread that follows trainings, everything else from the main one.
        self._lock = threading.Lock()

    def start(self, run_name: str, config: Mapping[str, Any]) -> None:
        """Start all trackers."""
        self._call(lambda tracker: tracker.start(run_name, config))

    def finish(self, failed: bool) -> None:
        """End the run in all trackers that are still active."""
        self._call(lambda tracker: tracker.finish(failed))

    def log_masks(self, masks: MaskSummary) -> None:
        """Send how many masks the target images have."""
        per_image = masks.masks / max(masks.images, 1)
        counts = {"images": masks.images, "masks": masks.masks, "masks_per_image": per_image}
        counts |= {"images_without_masks": len(masks.errors), "seconds": masks.seconds}
        self._log_numbers("masks", counts, 0)
        self._call(lambda tracker: tracker.log_text("masks", f"{masks.source}: {masks.note}"))

    def log_record(self, name: str, record: dict[str, Any]) -> None:
        """Send one progress record of a training: losses, scores, learning rate.

        Args:
            name: `train`, or the folder name of a trial.
            record: The quantities of one step, with `step` among them.
        """
        numbers = {k: v for k, v in record.items() if k not in ("step", "num_steps")}
        self._log_numbers(name, numbers, int(record["step"]))

    def log_trials(self, trials: Sequence[TrialRow]) -> None:
        """Send the hyperparameters and scores of each trial; the step is the trial's number."""
        for number, trial in enumerate(trials, start=1):
            numbers = dict(zip(short_names(list(trial.values)), trial.values.values(), strict=True))
            numbers |= {name: getattr(trial, name) for name in TRIAL_NUMBERS}
            numbers |= {"collapsed": float(bool(trial.collapsed))}
            self._log_numbers("trials", numbers, number)
            text = f"{trial.status}{f': {trial.error}' if trial.error else ''}"
            self._call(lambda tracker, t=trial, s=text: tracker.log_text(t.name, s))

    def log_report(self, record: RunRecord, output_dir: Place) -> None:
        """Send the scores, the results table, the verdict, report.json, report.html and the pictures."""
        steps = [point["step"] for curve in record.curves for point in curve.points]
        for row in record.rows:
            numbers = {f"{row.name}/{name}": getattr(row, name) for name in ROW_NUMBERS}
            ious = zip(record.class_set.classes, row.per_class or (), strict=False)
            numbers |= {f"{row.name}/iou/{name}": iou for name, iou in ious}
            self._log_numbers("report", numbers, int(max(steps, default=0)))
        self._call(lambda tracker: tracker.log_text("results", results_table(record)))
        if record.verdict is not None:
            verdict = record.verdict.line()
            self._call(lambda tracker: tracker.log_text("verdict", verdict))
        pictures = sorted((output_dir / "pictures").glob("*.png"), key=lambda path: path.name)
        for path in (output_dir / "report.json", output_dir / "report.html", *pictures):
            self._call(functools.partial(_send_file, path))

    def _log_numbers(self, prefix: str, numbers: Mapping[str, Any], step: int) -> None:
        """Send the finite numbers among some values."""
        finite = {
            f"{prefix}/{name}": float(number)
            for name, number in numbers.items()
            if isinstance(number, (int, float)) and math.isfinite(number)
        }
        if finite:
            self._call(lambda tracker: tracker.log_metrics(finite, step))

    def _call(self, send: Callable[[Tracker], None]) -> None:
        """Call every active tracker; drop one that raises."""
        with self._lock:
            for tracker in list(self._active):
                try:
                    send(tracker)
                except Exception as error:
                    self._active.remove(tracker)
                    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                    self._progress(
                        f"{type(tracker).__name__} failed and is not used any more in this run:"
                        f" {reason}"
                    )


def _send_file(path: Place, tracker: Tracker) -> None:
    """Send a file, from a copy on this machine where it is an object in storage."""
    with file_on_disk(path) as file:
        tracker.log_artifact(file)


@contextlib.contextmanager
def track_run(
    trackers: Sequence[TrackerLike], output_dir: Place, config: Config, progress: ProgressSink
) -> Iterator[RunTracking]:
    """Start the trackers of a run, and finish them when the block ends or raises.

    Args:
        trackers: Names or objects that passed `check_trackers`.
        output_dir: The run's claimed folder or address; its name is the name of the run.
        config: Sent flattened.
        progress: Called with a line about a tracker that fails.
    """
    tracking = RunTracking(create_trackers(trackers, output_dir), progress)
    tracking.start(output_dir.name, flatten(config))
    try:
        yield tracking
    except BaseException:
        tracking.finish(failed=True)
        raise
    tracking.finish(failed=False)
