"""Small data sets in the formats of the field, as their makers lay them out."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from image_files import noise, put
from PIL import Image

from sfss_ray.data.class_sets import CITYSCAPES_19, CITYSCAPES_LABEL_IDS

ROAD, BUILDING, CAR = 7, 11, 26  # Cityscapes labelIds


def put_palette(path: Path, label_ids: np.ndarray) -> Path:
    """A GTA5 label: palette PNG whose index is the Cityscapes labelId."""
    colours = np.zeros((256, 3), np.uint8)
    colours[list(CITYSCAPES_LABEL_IDS.values())] = CITYSCAPES_19.palette
    picture = Image.fromarray(label_ids.astype(np.uint8))
    picture.putpalette(colours.ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def put_synthia(path: Path, ids: np.ndarray) -> Path:
    """A SYNTHIA label: 16-bit RGB PNG, class id first, instance id second."""
    rgb = np.zeros((*ids.shape, 3), np.uint16)
    rgb[..., 0], rgb[..., 1], rgb[..., 2] = ids, 777, 3
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), rgb[..., ::-1])  # OpenCV wants blue first
    return path


def ids_of(*values: int, size: tuple[int, int] = (6, 9)) -> np.ndarray:
    """(H, W) ids: the values repeated over the columns."""
    return np.resize(np.array(values, np.uint8), size[1])[None].repeat(size[0], 0)


def gta5(root: Path, *label_maps: np.ndarray) -> Path:
    """images/00001.png and labels/00001.png, and so on."""
    for number, ids in enumerate(label_maps, 1):
        put(root / "images" / f"{number:05}.png", noise(*ids.shape))
        put_palette(root / "labels" / f"{number:05}.png", ids)
    return root


def synthia(root: Path, *label_maps: np.ndarray) -> Path:
    """RGB/0000000.png and GT/LABELS/0000000.png, and so on."""
    for number, ids in enumerate(label_maps):
        put(root / "RGB" / f"{number:07}.png", noise(*ids.shape))
        put_synthia(root / "GT" / "LABELS" / f"{number:07}.png", ids)
    return root


def camvid(root: Path, *label_maps: np.ndarray) -> Path:
    """images/train and labels/train, named after a drive."""
    for number, ids in enumerate(label_maps):
        name = f"train/0001TP_{number:06}.png"
        put(root / "images" / name, noise(*ids.shape))
        put(root / "labels" / name, ids)
    return root


def plain(root: Path, *label_maps: np.ndarray, classes: str = "") -> Path:
    """images/, labels/ and a class list."""
    for number, ids in enumerate(label_maps):
        put(root / "images" / f"{number}.png", noise(*ids.shape))
        put(root / "labels" / f"{number}.png", ids)
    if classes:
        (root / "classes.txt").write_text(classes)
    return root


def cityscapes(root: Path, label_ids: np.ndarray, train_ids: np.ndarray | None = None) -> Path:
    """leftImg8bit and gtFine with labelIds, and labelTrainIds where they are given."""
    put(root / "leftImg8bit/train/aachen/a_leftImg8bit.png", noise(*label_ids.shape))
    put(root / "gtFine/train/aachen/a_gtFine_labelIds.png", label_ids)
    if train_ids is not None:
        put(root / "gtFine/train/aachen/a_gtFine_labelTrainIds.png", train_ids)
    return root
