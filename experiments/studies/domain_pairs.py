"""The pairs of domains on which the studies compare methods.

`streets` adapts from drawn game scenes to drawn camera scenes and needs no data. `camvid_day2dusk` is
real video and needs --data. `cityscapes2camvid_dusk` and `cityscapes2camvid_day` adapt a checkpoint that
its authors trained on Cityscapes, given by --source-model, to CamVid. `cityscapes` and `streets_itself`
adapt a source model to its own domain, where little can be gained.

A pair holds the source model, the unlabelled target images, masks from several sources of regions, and
labels. The labels are used for reporting, and by the rows named ground truth or ceiling.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sfss_ray.config import AugmentConfig, Config, override
from sfss_ray.config.train import LEAST_SOURCE_SHARE
from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19, ClassSet
from sfss_ray.data.folders import ImageFile, LabelledImage, list_images
from sfss_ray.data.labelled import load_labelled
from sfss_ray.data.pairing import pair_labels
from sfss_ray.inputs.crop_size import choose_crop_size
from sfss_ray.masks.bank.schema import read_recipe, write_shard
from sfss_ray.models.checkpoints import load_source_model
from sfss_ray.models.model_file import SourceModel, save_model
from sfss_ray.streets.default import (
    SOURCE_MODEL,
    TARGET_SEED,
    VAL_IMAGES,
    VAL_SEED,
    embedded_config,
)
from sfss_ray.train.baseline import SELF_TRAINING

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the recipes, one folder up

from camvid_day2dusk import DAY, DUSK, arrange, make_config
from study_regions import (
    connected_regions,
    drawn_instances,
    labelled_regions,
    mask_finder,
    row_of,
)

PLAIN = SELF_TRAINING | {
    "train.loss.neighbour_space": "geometry",
    "train.loss.neighbour_pixels": "all",
}
"""Plain self-training. Rows with neighbours name how they are asked, and others have none."""
BASE = PLAIN | {"train.batch_norm": "target", "train.source_share": 0.0}
"""Knobs shared by all rows of the pairs of our own networks."""
MILD_COLOURS = {
    "jitter": 0.3,
    "hue": 0.05,
    "grey_probability": 0.05,
    "blur_probability": 0.2,
}
"""Weak colour changes: a small network cannot learn strong ones in a few hundred steps."""
ALONE = {"train.loss.vote_weight": 1.0}
ALONE_FOR_RARE = ALONE | {"train.loss.prior_power": 0.5}
SOURCE_STEPS = 3000
"""Steps of the source model of camvid_day2dusk."""


@dataclass(frozen=True)
class DomainPair:
    """A source model with a target domain."""

    name: str
    options: str
    """Options of ablation.py that give this pair."""
    source_model: Path
    images: tuple[ImageFile, ...]
    """Target images, without labels."""
    val: tuple[LabelledImage, ...]
    """Labelled images for scoring."""
    classes: ClassSet
    config: Config
    """Plain self-training. The rows override it."""
    instances: Callable[[ImageFile], np.ndarray]
    """Ground-truth regions of a target image, (H, W) ids, 0 = none."""
    folder: Path
    votes: Mapping[str, Mapping[str, Any]]
    """Source of regions -> knobs of the pooled vote for it. In regions of one object each, the mask
    can decide alone (vote_weight 1), with a strong correction for rare classes (prior_power)."""
    labelled: tuple[LabelledImage, ...] = ()
    """The target images with labels, where these are neither drawn nor the scored images."""
    ceiling_keeps_statistics: bool = False
    """Whether the ceiling trains with the BatchNorm statistics that the adaptations start from."""

    def labelled_folds(self) -> list[tuple[tuple[LabelledImage, ...], tuple[LabelledImage, ...]]]:
        """Return (train, score) splits for a model trained with target labels.

        No image is in both parts of a split. Where the scored images are the target images themselves,
        the two halves of the video are swapped.
        """
        if self.name == "streets" or self.labelled:
            return [(self.labelled_target(), self.val)]
        half = len(self.val) // 2
        return [(self.val[:half], self.val[half:]), (self.val[half:], self.val[:half])]

    def labelled_target(self) -> tuple[LabelledImage, ...]:
        """Return the target images with labels. Drawn scenes are drawn again with their labels."""
        if self.name != "streets":
            return self.labelled or self.val
        from sfss_ray.streets.scenes import write_streets

        labelled = self.folder / "labelled_target"
        write_streets(labelled, "camera", TARGET_SEED, len(self.images))
        return tuple(pair_labels(labelled / "images", labelled / "labels"))[: len(self.images)]

    def masks(self, regions: str) -> Path:
        """Return the folder of masks of all target images from one source of regions.

        Masks that are missing, or that another recipe made, are made first.
        """
        folder = self.folder / "masks" / f"{regions}-{len(self.images)}"
        shard = folder / "masks-0.parquet"
        find_masks, recipe = mask_finder(regions, self.config, self.instances)
        stored_recipe = read_recipe(shard) or {}
        if any(stored_recipe.get(name) != value for name, value in recipe.items()):
            folder.mkdir(parents=True, exist_ok=True)
            write_shard(shard, [row_of(file, find_masks) for file in self.images], recipe)
        return folder


def streets(folder: Path, target_images: int = 600) -> DomainPair:
    """Return the pair of drawn scenes. Labels of the target are drawn again when a row needs them."""
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
            # With all of the target's statistics this source model loses four points.
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
        "--pair streets",
        SOURCE_MODEL,
        _first_images(target, target_images),
        tuple(pair_labels(val / "images", val / "labels")),
        CITYSCAPES_19,
        config,
        drawn_instances,
        folder,
        {"ground_truth": ALONE_FOR_RARE, "small_sam": ALONE_FOR_RARE},  # see region_worth.py
    )


def streets_itself(folder: Path, target_images: int) -> DomainPair:
    """Return the pair of drawn game scenes, and other game scenes that the source model never saw."""
    from sfss_ray.streets.scenes import write_streets

    target, val = folder / "target", folder / "val"
    write_streets(target, "game", TARGET_SEED, target_images)
    write_streets(val, "game", VAL_SEED, VAL_IMAGES)
    return replace(
        streets(folder / "camera", 1),
        name="streets_itself",
        options=f"--pair streets_itself --images {target_images}",
        images=_first_images(target, target_images),
        val=tuple(pair_labels(val / "images", val / "labels")),
        instances=partial(drawn_instances, domain="game"),
        folder=folder,
        labelled=tuple(pair_labels(target / "images", target / "labels"))[:target_images],
    )


def _first_images(scenes: Path, count: int) -> tuple[ImageFile, ...]:
    """Return the first scenes of a folder, in which an earlier run may have drawn more."""
    return tuple(list_images(scenes / "images"))[:count]


def camvid_day2dusk(folder: Path, data: Path, source_model: Path) -> DomainPair:
    """Return the pair of CamVid. Its dusk drive is both target and scored, as it is the only one."""
    import argparse

    images, labels = arrange(data, folder / "dusk", DUSK)
    steps = 300
    base = make_config(argparse.Namespace(seed=0, source_steps=1, steps=steps))
    val = tuple(pair_labels(images, labels))
    return DomainPair(
        "camvid_day2dusk",
        "--pair camvid_day2dusk --data DIR",
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


def camvid_source(folder: Path, data: Path, device: str = "cpu", processes: int = 0) -> Path:
    """Return the source model, trained once from random weights on the labelled day frames."""
    import argparse

    from sfss_ray.models.architectures.catalogue import build_network
    from sfss_ray.train.pretraining import PretrainingTask, pretrain
    from sfss_ray.train.run_state import LocalRun, load_state

    model = folder / "source" / "source.pt"
    if model.exists():
        return model
    config = make_config(argparse.Namespace(seed=0, source_steps=SOURCE_STEPS, steps=1))
    config = override(config, {"compute.loader_processes": processes})
    day = tuple(pair_labels(*arrange(data, folder / "day", DAY)))
    run = LocalRun(folder / "source" / "train", device)
    pretrain(PretrainingTask(day, CAMVID_11, config), run)
    name = config.pretrain.network
    network = build_network(name, len(CAMVID_11))
    network.load_state_dict(load_state(run.folder)["student"])
    facts = {"steps": SOURCE_STEPS, "images": len(day), "seed": config.seed}
    save_model(model, SourceModel(network, name, CAMVID_11, facts))
    return model


def cityscapes2camvid(folder: Path, data: Path, checkpoint: Path, light: str) -> DomainPair:
    """Return the pair of a checkpoint trained on Cityscapes and frames of CamVid.

    All knobs of the adaptation are the defaults, apart from the number of steps. Outputs of the
    checkpoint are grouped to CamVid's classes. By dusk the only drive is both target and scored. By day
    two drives are the target, and later frames are scored.

    Args:
        folder: Where the pair's files are written.
        data: Folder of CamVid's images/ and labels/.
        checkpoint: A checkpoint with the 19 classes of Cityscapes.
        light: `dusk` or `day`.
    """
    source_model = folder / "source.pt"
    if not source_model.exists():
        save_model(source_model, load_source_model(checkpoint, class_groups="camvid-11"))
    images, labels = arrange(data, folder / light, DUSK if light == "dusk" else DAY)
    labelled = tuple(pair_labels(images, labels))
    val = labelled
    if light == "day":
        val = tuple(pair_labels(*arrange(data, folder / "day_val", DAY, split="val")))
    pair = f"cityscapes2camvid_{light}"
    return DomainPair(
        *_foreign_name(pair, checkpoint),
        source_model,
        tuple(list_images(images)),
        val,
        CAMVID_11,
        _foreign_config((360, 480)),
        partial(labelled_regions, labels),
        folder,
        {"ground_truth": ALONE},
        labelled if light == "day" else (),
        # Statistics of four crops cost a network that was trained on large crops three points.
        ceiling_keeps_statistics=True,
    )


def cityscapes(folder: Path, data: Path, checkpoint: Path) -> DomainPair:
    """Return the pair of a checkpoint trained on Cityscapes and Cityscapes itself, at half its size.

    Args:
        folder: Where the pair's files are written.
        data: Root of Cityscapes: leftImg8bit/ and gtFine/.
        checkpoint: A checkpoint with the 19 classes of Cityscapes.
    """
    source = load_source_model(checkpoint)
    source_model = folder / "source.pt"
    if not source_model.exists():
        save_model(source_model, source)
    images = data / "leftImg8bit"
    val = load_labelled(images, data / "gtFine", source.classes).pairs
    labelled = {item.image_id: item for item in val}
    config = override(_foreign_config((1024, 2048)), {"evaluation.max_size": 1024})
    return DomainPair(
        *_foreign_name("cityscapes", checkpoint),
        source_model,
        tuple(list_images(images)),
        val,
        source.classes,
        config,
        lambda file: connected_regions(labelled[file.image_id].labels()),
        folder,
        {"ground_truth": ALONE},
        ceiling_keeps_statistics=True,
    )


def _foreign_name(pair: str, checkpoint: Path) -> tuple[str, str]:
    """Return the name of a pair of a foreign checkpoint, and its options."""
    # Without dots, because files are named after it.
    name = f"{pair}_{checkpoint.stem}".replace(".", "_")
    return name, f"--pair {pair} --data DIR --source-model {checkpoint.name}"


def _foreign_config(image_size: tuple[int, int]) -> Config:
    """Return the config of a foreign checkpoint: self-training with the defaults, and 200 steps."""
    steps = 200
    # What a run chooses for images of this size.
    crop = choose_crop_size(image_size, AugmentConfig(), 2048, 16)
    return override(
        Config(),
        PLAIN
        | {
            "train.num_steps": steps,
            "train.evaluate_every": steps // 2,
            "train.augment.crop_size": crop,
            "train.source_share": LEAST_SOURCE_SHARE,  # the default with 24 images or more
            "evaluation.held_out_share": 0.0,
            # As few steps as the adaptations take leave the ceiling below them.
            "pretrain.num_steps": 3 * steps,
            "pretrain.optim.learning_rate": 3e-4,
            "pretrain.batch_size": 4,
            "pretrain.augment.crop_size": crop,
        },
    )
