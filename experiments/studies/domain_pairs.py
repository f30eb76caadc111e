"""The two pairs of domains that experiments compare methods on, with everything at hand.

`streets`: drawn game -> drawn camera, no data needed. `camvid_day2dusk`: real video, needs --data.
A pair holds the source model, the unlabelled target images, masks of several region sources, and the
labels that are used to report (and for the rows that are called ground truth or ceiling) alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sfss_ray.config import Config, override
from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19, ClassSet
from sfss_ray.data.decoding import read_image
from sfss_ray.data.folders import ImageFile, LabelledImage, list_images, read_labels
from sfss_ray.data.pairing import pair_labels
from sfss_ray.masks.bank.schema import read_recipe, write_shard
from sfss_ray.masks.regions import (
    build_region_source,
    make_recipe,
    region_records,
)
from sfss_ray.streets.default import (
    SOURCE_MODEL,
    TARGET_SEED,
    VAL_IMAGES,
    VAL_SEED,
    embedded_config,
)

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the recipes, one folder up

from camvid_day2dusk import DUSK, SELF_TRAINING, arrange, make_config

REGIONS = ("felzenszwalb", "small_sam", "random", "ground_truth")
BASE = SELF_TRAINING | {"train.batch_norm": "target"}
"""What all rows start from."""
MILD_COLOURS = {
    "jitter": 0.3,
    "hue": 0.05,
    "grey_probability": 0.05,
    "blur_probability": 0.2,
}
"""A strong view that is not so strong: a small network has enough to learn in few steps."""
ALONE = {"train.loss.vote_weight": 1.0}
ALONE_FOR_RARE = ALONE | {"train.loss.prior_power": 0.5}
RANDOM_REGIONS = 60  # per image, about as many as Felzenszwalb's


@dataclass(frozen=True)
class DomainPair:
    """One source model, one target domain."""

    name: str
    source_model: Path
    images: tuple[ImageFile, ...]
    """What is adapted to; no labels belong to it."""
    val: tuple[LabelledImage, ...]
    """What is scored."""
    classes: ClassSet
    config: Config
    """Plain self-training; rows change it."""
    instances: Callable[[ImageFile], np.ndarray]
    """Ground-truth regions of a target image, (H, W) ids, 0 = none."""
    folder: Path
    votes: Mapping[str, Mapping[str, Any]]
    """Region source -> knobs of the pooled vote that suit it there. Regions that join few things may
    speak alone (vote_weight 1), and for rare classes (prior_power)."""

    def labelled_folds(self) -> list[tuple[tuple[LabelledImage, ...], tuple[LabelledImage, ...]]]:
        """(train, score) for a model trained with target labels; no image is in both parts of one.

        Where the scored images are the target images themselves, their halves in time take turns.
        """
        if self.name == "streets":
            return [(self.labelled_target(), self.val)]
        half = len(self.val) // 2
        return [(self.val[:half], self.val[half:]), (self.val[half:], self.val[:half])]

    def labelled_target(self) -> tuple[LabelledImage, ...]:
        """The target images with labels: CamVid's are scored too, drawn ones are drawn again."""
        if self.name != "streets":
            return self.val
        from sfss_ray.streets.scenes import write_streets

        labelled = self.folder / "labelled_target"
        write_streets(labelled, "camera", TARGET_SEED, len(self.images))
        return tuple(pair_labels(labelled / "images", labelled / "labels"))

    def masks(self, regions: str) -> Path:
        """Folder of masks of all target images by a region source; made when they are not there, or
        were found otherwise."""
        folder = self.folder / "masks" / f"{regions}-{len(self.images)}"
        shard = folder / "masks-0.parquet"
        find, recipe = self._finder(regions)
        there = read_recipe(shard) or {}
        if any(there.get(name) != value for name, value in recipe.items()):
            folder.mkdir(parents=True, exist_ok=True)
            write_shard(shard, [_row(file, find) for file in self.images], recipe)
        return folder

    def _finder(self, regions: str) -> tuple[Callable[[ImageFile, np.ndarray], list], dict]:
        if regions in ("felzenszwalb", "small_sam"):
            masks = override(self.config, {"masks.regions": regions}).masks
            recipe, checkpoint = make_recipe(masks, None)
            find = build_region_source(recipe, checkpoint, masks.points_per_batch, "cpu")
            return lambda _, image: find(image), recipe.as_dict()
        recipe = {"source": regions, "sam_type": "", "sam_sha256": "", "knobs": {}}
        if regions == "random":
            return lambda file, image: region_records(random_regions(file, image)), recipe
        return lambda file, _: region_records(self.instances(file)), recipe


def _row(file: ImageFile, find: Callable[[ImageFile, np.ndarray], list]) -> dict[str, Any]:
    image = read_image(file.path)
    row = {"image_id": file.image_id, "path": str(file.path), "error": None}
    return row | {"height": image.shape[0], "width": image.shape[1], "masks": find(file, image)}


def random_regions(file: ImageFile, image: np.ndarray) -> np.ndarray:
    """(H, W) ids 1..60: each pixel belongs to the nearest of 60 random points."""
    from scipy.spatial import KDTree

    height, width = image.shape[:2]
    seed = [ord(letter) for letter in file.image_id]
    points = np.random.default_rng(seed).uniform(0, (height, width), (RANDOM_REGIONS, 2))
    pixels = np.indices((height, width)).reshape(2, -1).T
    return KDTree(points).query(pixels)[1].reshape(height, width) + 1


def streets(folder: Path, target_images: int = 600) -> DomainPair:
    """Drawn scenes; target labels are drawn again from the seed when a row asks for them."""
    from sfss_ray.streets.scenes import write_streets

    target, val = folder / "target", folder / "val"
    write_streets(target, "camera", TARGET_SEED, target_images, with_labels=False)
    write_streets(val, "camera", VAL_SEED, VAL_IMAGES)
    config = override(
        embedded_config(),
        {
            "evaluation.held_out_share": 0.0,
            "train.num_steps": 500,
            "train.evaluate_every": 250,
            "train.optim.learning_rate": 1e-3,
            "train.ema_momentum": 0.999,
            # Of the target's own statistics this source model loses four points (experiments/README).
            "train.statistics_share": 0.5,
            "train.loss.teacher_flip": True,
            "pretrain.num_steps": 500,
            "pretrain.optim.learning_rate": 1e-3,
            "pretrain.batch_size": 4,
            "pretrain.augment.crop_size": [128, 256],
            "pretrain.augment.scale_range": [1.0, 1.5],
        }
        | {
            f"{stage}.augment.{name}": value
            for stage in ("train", "pretrain")
            for name, value in MILD_COLOURS.items()
        }
        | BASE,
    )
    return DomainPair(
        "streets",
        SOURCE_MODEL,
        tuple(list_images(target / "images")),
        tuple(pair_labels(val / "images", val / "labels")),
        CITYSCAPES_19,
        config,
        drawn_instances,
        folder,
        {"ground_truth": ALONE_FOR_RARE, "small_sam": ALONE_FOR_RARE},  # see region_worth.py
    )


def drawn_instances(file: ImageFile) -> np.ndarray:
    """The instance map of a target scene, drawn again."""
    from sfss_ray.streets.scenes import render_scene

    return render_scene("camera", TARGET_SEED, int(file.image_id)).instances


def camvid_day2dusk(folder: Path, data: Path, source_model: Path) -> DomainPair:
    """CamVid's dusk drive, adapted to and scored on, as it has no second set of frames with labels."""
    import argparse

    images, labels = arrange(data, folder / "dusk", DUSK)
    steps = 300
    base = make_config(argparse.Namespace(seed=0, source_steps=1, steps=steps))
    val = tuple(pair_labels(images, labels))
    return DomainPair(
        "camvid_day2dusk",
        source_model,
        tuple(list_images(images)),
        val,
        CAMVID_11,
        override(
            base,
            {
                "train.evaluate_every": steps // 2,
                "pretrain.num_steps": steps,
                "pretrain.optim.learning_rate": 3e-4,
                "pretrain.batch_size": 4,
                "pretrain.augment.crop_size": [256, 352],
            }
            | BASE,
        ),
        partial(labelled_regions, labels),
        folder,
        {"ground_truth": ALONE},
    )


def labelled_regions(labels: Path, file: ImageFile) -> np.ndarray:
    """Connected pieces of the label map of an image."""
    return connected_regions(read_labels(labels / f"{file.image_id}.png"))


def connected_regions(labels: np.ndarray) -> np.ndarray:
    """(H, W) ids of the connected pieces of each class; pixels without a class get 0."""
    from skimage.measure import label

    pieces = np.asarray(label(labels, background=255, connectivity=1))
    return pieces.astype(np.int32)
