"""Self-training as a baseline: what pseudo-labels alone give, without masks and without the contrast."""

from __future__ import annotations

from typing import Any

from sfss_ray.config import Config, override
from sfss_ray.runtime.progress import ProgressSink
from sfss_ray.storage.places import Place
from sfss_ray.train.launch import TrainResult, run_training
from sfss_ray.train.progress_tail import RecordSink
from sfss_ray.train.training_inputs import Prepared

SELF_TRAINING: dict[str, Any] = {
    "train.loss.contrast_weight": 0.0,
    "train.loss.mask_vote": "none",
    "train.loss.prior_power": 0.0,
    "train.loss.concept_weight": 0.0,
    "train.loss.source_vote": 0.0,
    "train.loss.label_space": "pseudo_labels",
    "train.loss.rule_out_weight": 0.0,
    "train.loss.output_weight": 0.0,
    "train.loss.ring_weight": 0.0,
    "train.loss.neighbour_weight": 0.0,
}
"""Knobs by which plain self-training differs from the method."""
BASELINE_FOLDER, BASELINE_NAME = "self_training", "self-training"


def train_baseline(
    prepared: Prepared,
    folder: Place,
    config: Config,
    progress: ProgressSink,
    on_record: RecordSink | None = None,
) -> TrainResult:
    """Train plain self-training with the seed and steps of a run, in a folder below the run's own.

    Called again with the same folder, it resumes.

    Args:
        prepared: The inputs of the run.
        folder: The run's folder.
        config: Of the run's own training.
        progress: Called with each progress line.
        on_record: Called with BASELINE_NAME and each new progress record.
    """

    def log(_name: str, record: dict[str, Any]) -> None:
        if on_record is not None:
            on_record(BASELINE_NAME, record)

    progress(f"training a baseline: {BASELINE_NAME}")
    baseline = override(config, SELF_TRAINING)
    return run_training(prepared.placed(folder), folder / BASELINE_FOLDER, baseline, progress, log)
