"""The embedded default: drawn streets, a source model and a small SAM that ship with the package.

With it a whole run needs no data set. The source model was trained on labelled `game` scenes; the
target images are unlabelled `camera` scenes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfss_ray.config import Config, override
from sfss_ray.config.space import DEFAULT_SPACE

WEIGHTS = Path(__file__).resolve().parent / "weights"
SOURCE_MODEL = WEIGHTS / "source.pt"
SMALL_SAM_FACTS = WEIGHTS / "small_sam.json"
TARGET_SEED, VAL_SEED = 101, 102
TARGET_IMAGES, VAL_IMAGES = 96, 40


@dataclass(frozen=True)
class EmbeddedData:
    """The source model and the folders of drawn scenes."""

    source_model: Path
    target_images: Path
    val_images: Path
    val_labels: Path


def write_embedded_data(folder: Path | str) -> EmbeddedData:
    """Draw the target and val scenes below a folder; existing files are kept."""
    from sfss_ray.streets.scenes import write_streets

    target, val = Path(folder) / "target", Path(folder) / "val"
    write_streets(target, "camera", TARGET_SEED, TARGET_IMAGES, with_labels=False)
    write_streets(val, "camera", VAL_SEED, VAL_IMAGES)
    return EmbeddedData(SOURCE_MODEL, target / "images", val / "images", val / "labels")


def embedded_config() -> Config:
    """Return a config for drawn streets of 256x128 pixels that takes minutes on two CPU cores."""
    generator: dict[str, Any] = json.loads(SMALL_SAM_FACTS.read_text())["generator"]
    return override(
        Config(),
        {f"masks.{name}": value for name, value in generator.items()}
        | {
            "masks.regions": "small_sam",
            "train.num_steps": 160,
            "train.evaluate_every": 80,
            "train.batch_size": 4,
            "train.ema_momentum": 0.99,
            "train.optim.learning_rate": 1e-4,
            "train.augment.crop_size": [128, 256],
            "train.augment.scale_range": [1.0, 1.5],
            "train.pairs.anchors_per_image": 128,
            "train.pairs.negatives": 128,
            "train.pairs.bank_size": 64,
            "train.loss.contrast_weight": 0.03,
            "tune.num_trials": 6,
            "tune.space": [*DEFAULT_SPACE[:2], "train.ema_momentum=gap:0.9..0.997"],
            "tune.score": "balanced_mask_information",
        },
    )
