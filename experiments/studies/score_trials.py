"""The trials for judging scores without labels: some gain, some lose, some collapse."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain_pairs import DomainPair

from sfss_ray.config import Config, flatten, override
from sfss_ray.data.folders import ImageFile, evenly_spread
from sfss_ray.runtime.run_folder import write_json

HELD_OUT = {"streets": 48}
HELD_OUT_ELSEWHERE = 16
SIZES: dict[str, dict[str, Any]] = {
    "streets": {"train.augment.crop_size": [96, 192]},
    "camvid_day2dusk": {
        "train.augment.crop_size": [128, 192],
        "train.batch_size": 2,
        "train.statistics_images": 40,
    },
}
SIZE_OF_OTHERS: dict[str, Any] = {
    "train.augment.crop_size": [192, 256],
    "train.statistics_images": 40,
    "train.channels_last": True,
}
"""Settings of the pairs whose source model is a checkpoint of others."""
STEPS_SHARE = {"camvid_day2dusk": 0.5}
"""Pair -> share of the steps of the points below, 1 for the other pairs."""
NAMES = (
    "train.optim.learning_rate",
    "train.ema_momentum",
    "train.loss.contrast_weight",
    "train.loss.temperature",
    "train.batch_norm",
    "train.statistics_share",
    "train.num_steps",
)
# Settings that a search may try, from careful to extreme.
POINTS: tuple[tuple[Any, ...], ...] = (
    (1e-5, 0.99, 0.0, 0.1, "frozen", 0.0, 80),
    (1e-4, 0.99, 0.0, 0.1, "adapt", 1.0, 80),
    (3e-4, 0.99, 0.0, 0.1, "target", 1.0, 80),
    (1e-3, 0.99, 0.0, 0.1, "adapt", 0.5, 80),
    (3e-3, 0.9, 0.0, 0.1, "adapt", 1.0, 60),
    (1e-4, 0.99, 0.03, 0.1, "target", 0.25, 80),
    (1e-4, 0.9, 0.3, 0.05, "frozen", 0.0, 60),
    (3e-4, 0.999, 0.1, 0.1, "target", 0.5, 80),
    (3e-4, 0.99, 2.0, 0.03, "adapt", 0.75, 60),
    (3e-4, 0.9, 0.03, 0.5, "target", 0.5, 80),
    (1e-3, 0.999, 1.0, 0.5, "frozen", 0.0, 60),
    (3e-5, 0.99, 0.1, 0.1, "target", 1.0, 40),
    (3e-5, 0.999, 2.0, 0.7, "target", 0.25, 40),
    (1e-3, 0.9, 0.1, 0.1, "frozen", 0.0, 80),
    (1e-2, 0.5, 0.0, 0.1, "adapt", 1.0, 60),
    (1e-2, 0.9, 0.1, 0.1, "frozen", 0.0, 60),
)
# Entropy alone rewards one class everywhere. These trials collapse, and the guard must detect it.
ENTROPY = {"train.loss.label_space": "entropy", "train.optim.trainable": "norm"}
ENTROPY_POINTS: tuple[tuple[Any, ...], ...] = (
    (1e-4, 0.99, 0.0, 0.1, "adapt", 1.0, 40),
    (1e-3, 0.99, 0.0, 0.1, "adapt", 0.5, 60),
    (1e-2, 0.99, 0.0, 0.1, "adapt", 1.0, 60),
    (3e-2, 0.99, 0.0, 0.1, "frozen", 0.0, 80),
)


@dataclass(frozen=True)
class TrialPlan:
    """The settings of one trial on a pair."""

    pair: DomainPair
    number: int
    knobs: dict[str, Any]
    seed: int

    @property
    def folder(self) -> Path:
        return self.pair.folder / "score_trials" / f"{self.number:02d}"

    @property
    def config(self) -> Config:
        name = self.pair.name
        steps = round(self.knobs["train.num_steps"] * STEPS_SHARE.get(name, 1.0))
        ends = {"train.num_steps": steps, "train.evaluate_every": steps, "seed": self.seed}
        return override(self.pair.config, SIZES.get(name, SIZE_OF_OTHERS) | self.knobs | ends)

    @property
    def training(self) -> tuple[ImageFile, ...]:
        """The target images for training: all that are not held out for the scores."""
        held_out_ids = {file.image_id for file in held_out(self.pair)}
        return tuple(file for file in self.pair.images if file.image_id not in held_out_ids)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the weights. A trial with another identity is trained again."""
        from sfss_ray.models.reading import file_sha256

        knobs = {k: v for k, v in flatten(self.config).items() if k.startswith(("train.", "seed"))}
        source = file_sha256(self.pair.source_model)
        return json.loads(json.dumps({"source": source, "images": len(self.training)} | knobs))


def plans(pair: DomainPair, seed: int = 0) -> list[TrialPlan]:
    """Return all trials of a pair."""
    knobs: list[dict[str, Any]] = [dict(zip(NAMES, point, strict=True)) for point in POINTS]
    knobs += [dict(zip(NAMES, point, strict=True)) | ENTROPY for point in ENTROPY_POINTS]
    return [TrialPlan(pair, number, values, seed) for number, values in enumerate(knobs, 1)]


def held_out(pair: DomainPair) -> tuple[ImageFile, ...]:
    """Return evenly spread target images that no trial learns from."""
    count = HELD_OUT.get(pair.name, HELD_OUT_ELSEWHERE)
    return tuple(evenly_spread(list(pair.images), min(count, len(pair.images) // 2)))


def train(plan: TrialPlan, masks: Path) -> None:
    """Train a trial unless it is finished. An interrupted trial starts again."""
    from sfss_ray.train.adaptation import AdaptationTask, adapt_student
    from sfss_ray.train.run_state import LocalRun

    note = plan.folder / "identity.json"
    if note.exists() and json.loads(note.read_text()) == plan.identity:
        return
    shutil.rmtree(plan.folder, ignore_errors=True)
    task = AdaptationTask(plan.pair.source_model, plan.training, masks, plan.config)
    adapt_student(task, LocalRun(plan.folder))
    write_json(note, plan.identity)


def networks(plan: TrialPlan) -> tuple[Any, Any]:
    """Return student and teacher of a trained trial."""
    from sfss_ray.models.model_file import load_model
    from sfss_ray.train.run_state import load_state

    state, prefix, loaded = load_state(plan.folder), "segmenter.", []
    for name in ("student", "teacher"):
        network = load_model(plan.pair.source_model).network
        network.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state[name].items() if k.startswith(prefix)}
        )
        loaded.append(network.eval())
    return loaded[0], loaded[1]
