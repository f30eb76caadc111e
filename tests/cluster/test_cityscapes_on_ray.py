"""Four true Cityscapes pairs through every verb of the command line, at their full size."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfss_ray import cli
from sfss_ray.data.class_sets import CITYSCAPES_19, CITYSCAPES_LABEL_IDS
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.streets.default import SMALL_SAM_FACTS, SOURCE_MODEL

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_cluster")]

SIZE = (1024, 2048)
# What the shipped small SAM was measured with, on a coarser grid.
_GENERATOR = json.loads(SMALL_SAM_FACTS.read_text())["generator"] | {"points_per_side": 8}
MASK_KNOBS = {"masks.regions": "small_sam"} | {f"masks.{k}": v for k, v in _GENERATOR.items()}
TRAIN_KNOBS = {
    "train.num-steps": "20",
    "train.evaluate-every": "20",
    "train.batch-size": "2",
    "train.statistics-images": "2",
    "train.augment.crop-size": "256 512",
    "train.augment.scale-range": "0.4 0.6",
    "train.optim.learning-rate": "0.0001",
    "train.pairs.bank-size": "8",
    "evaluation.held-out-share": "0.25",
}


def sfss_ray(verb: str, *paths: Path, **options: object) -> int:
    """The command line; words of an option are separated by blanks."""
    words = [verb, *map(str, paths), "--compute.device", "cpu"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", *str(value).split()]
    return cli.main(words)


def test_true_images_go_through_every_verb(shared_data, tmp_path: Path, capsys):
    root = shared_data("cityscapes_sample")
    images, labels = root / "leftImg8bit" / "train", root / "gtFine" / "train"
    masks, run, out = tmp_path / "masks", tmp_path / "run", tmp_path / "predictions"

    assert cli.main(["data", "check", str(root)]) == 0
    page = capsys.readouterr().out
    assert "pairs: 4" in page
    assert "image sizes: 2048x1024 (4)" in page
    assert page.rstrip().endswith("sound")

    assert sfss_ray("masks", target_images=images, output_dir=masks, **MASK_KNOBS) == 0
    store = MaskStore(masks)
    assert len(store) == 4
    assert not store.errors
    assert store.num_masks >= 8
    assert all(store.id_map(image_id).shape == SIZE for image_id in store.ids())

    inputs = {"source_model": SOURCE_MODEL, "target_images": images, "masks": masks}
    assert sfss_ray("train", **inputs, output_dir=run, **TRAIN_KNOBS) == 0
    student = run / "student.pt"
    assert student.exists()

    capsys.readouterr()
    assert sfss_ray("evaluate", model=student, images=images, labels=labels) == 0
    page = capsys.readouterr().out
    said = float(re.findall(r"^miou: (\S+)$", page, re.MULTILINE)[0])
    assert "images: 4" in page

    assert sfss_ray("predict", student, images, out) == 0
    assert said == pytest.approx(miou_of_files(out / "train_ids", labels), abs=0.006)
    for path in (out / "label_ids").rglob("*_leftImg8bit.png"):
        check_label_ids(path, out)
    assert len(list((out / "overlay").rglob("*.png"))) == 4


def miou_of_files(predicted: Path, labels: Path) -> float:
    """Mean IoU in percent over the classes that the labels show, counted class by class.

    The truth is in the labelIds, as for the official scorer.
    """
    train_id = np.full(256, 255)
    train_id[list(CITYSCAPES_LABEL_IDS.values())] = np.arange(19)
    files = sorted(predicted.rglob("*_leftImg8bit.png"))
    assert len(files) == 4
    both, either, shown = np.zeros(19), np.zeros(19), np.zeros(19)
    for path in files:
        name = path.name.replace("_leftImg8bit", "_gtFine_labelIds")
        truth = train_id[np.array(Image.open(next(labels.rglob(name))))]
        ids = np.array(Image.open(path))
        assert ids.shape == truth.shape == SIZE
        for k in range(19):
            there = (ids == k) & (truth != 255)
            both[k] += (there & (truth == k)).sum()
            either[k] += (there | (truth == k)).sum()
            shown[k] += (truth == k).sum()
    return float(100 * (both[shown > 0] / either[shown > 0]).mean())


def check_label_ids(path: Path, out: Path) -> None:
    """What the benchmark takes is what was predicted, by class name."""
    label_ids = np.array(Image.open(path))
    train_ids = np.array(Image.open(out / "train_ids" / path.relative_to(out / "label_ids")))
    for index, name in enumerate(CITYSCAPES_19.classes):
        assert np.array_equal(label_ids == CITYSCAPES_LABEL_IDS[name], train_ids == index), name
