"""The embedded default: drawn streets, a source model and a small SAM that ship with the package.

With it a whole run needs no data set. The source model was trained on labelled `game` scenes; the
target images are unlabelled `camera` scenes.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfss_ray.config import Config, override
from sfss_ray.storage.files import writing
from sfss_ray.storage.places import ObjectPath, Place, to_place

WEIGHTS = Path(__file__).resolve().parent / "weights"
SOURCE_MODEL = WEIGHTS / "source.pt"
SMALL_SAM_FACTS = WEIGHTS / "small_sam.json"
TARGET_SEED, VAL_SEED = 101, 102
TARGET_IMAGES, VAL_IMAGES = 96, 40


@dataclass(frozen=True)
class EmbeddedData:
    """The source model and the folders of drawn scenes."""

    source_model: Path
    target_images: Place
    val_images: Place
    val_labels: Place


def write_embedded_data(folder: Place | str) -> EmbeddedData:
    """Draw the target and val scenes below a folder or an address; existing files are kept."""
    root = to_place(folder)
    if isinstance(root, ObjectPath):
        _upload_scenes(root)
    else:
        _draw_scenes(root)
    target, val = root / "target", root / "val"
    return EmbeddedData(SOURCE_MODEL, target / "images", val / "images", val / "labels")


def _draw_scenes(folder: Path) -> None:
    from sfss_ray.streets.scenes import write_streets

    write_streets(folder / "target", "camera", TARGET_SEED, TARGET_IMAGES, with_labels=False)
    write_streets(folder / "val", "camera", VAL_SEED, VAL_IMAGES)


def _upload_scenes(root: ObjectPath) -> None:
    """Draw the scenes on this machine, and upload those that are missing."""
    present = {file.key for file, _ in root.files()}
    with tempfile.TemporaryDirectory() as folder, writing(root):
        _draw_scenes(Path(folder))
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            scene = root / file.relative_to(folder).as_posix()
            if scene.key not in present:
                scene.upload(file)


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
            "tune.score": "anchored_information",
        },
    )
