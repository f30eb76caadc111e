"""Self-training as a baseline: its knobs, its folder, and the training that it repeats."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfss_ray.config import Config, flatten, override
from sfss_ray.train import baseline
from sfss_ray.train.baseline import BASELINE_NAME, SELF_TRAINING, train_baseline
from sfss_ray.train.launch import TrainResult


class Prepared:
    """Prepared inputs that remember where the source model was placed."""

    def __init__(self) -> None:
        self.folder = None

    def placed(self, folder):
        self.folder = folder
        return self


@pytest.fixture
def trainings(monkeypatch) -> list:
    """Record the trainings instead of running them."""
    calls: list = []

    def run_training(prepared, folder, config, progress, on_record):
        on_record("train", {"step": 1})
        calls.append((prepared, folder, config))
        return TrainResult(folder / "student.pt")

    monkeypatch.setattr(baseline, "run_training", run_training)
    return calls


def test_a_baseline_has_the_seed_and_steps_of_the_run_and_no_masks(trainings, tmp_path: Path):
    values = {"seed": 5, "train.num_steps": 7, "train.ema_momentum": 0.9}
    others = {"source_vote": 0.25, "label_space": "entropy", "rule_out_weight": 1.0}
    others |= {"output_weight": 0.5, "ring_weight": 0.5, "neighbour_weight": 1.0}
    values |= {f"train.loss.{name}": value for name, value in others.items()}
    config = override(Config(), values)
    prepared, records, lines = Prepared(), [], []
    result = train_baseline(
        prepared,  # pyright: ignore[reportArgumentType]
        tmp_path,
        config,
        lines.append,
        lambda *record: records.append(record),
    )
    ((_, folder, used),) = trainings
    assert folder == tmp_path / "self_training"
    assert result.model == folder / "student.pt"
    assert prepared.folder == tmp_path, "the run's own copy of the source model is used"
    before, after = flatten(config), flatten(used)
    assert {name for name in before if before[name] != after[name]} == set(SELF_TRAINING)
    assert (used.train.loss.contrast_weight, used.train.loss.mask_vote) == (0.0, "none")
    assert records == [(BASELINE_NAME, {"step": 1})]
    assert lines == ["training a baseline: self-training"]


def test_a_baseline_needs_no_trackers(trainings, tmp_path: Path):
    train_baseline(Prepared(), tmp_path, Config(), str)  # pyright: ignore[reportArgumentType]
    assert len(trainings) == 1
