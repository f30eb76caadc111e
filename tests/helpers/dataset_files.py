"""Small data sets in the published layouts and label formats."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from image_files import noise, put
from PIL import Image

from sfss_ray.data.class_sets import CITYSCAPES_19, CITYSCAPES_LABEL_IDS

ROAD, BUILDING, CAR = 7, 11, 26  # Cityscapes labelIds


def put_palette(path: Path, label_ids: np.ndarray) -> Path:
    """Write a GTA5 label map: a palette PNG whose indices are Cityscapes labelIds."""
    colours = np.zeros((256, 3), np.uint8)
    colours[list(CITYSCAPES_LABEL_IDS.values())] = CITYSCAPES_19.palette
    picture = Image.fromarray(label_ids.astype(np.uint8))
    picture.putpalette(colours.ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def put_mapillary(path: Path, ids: np.ndarray) -> Path:
    """Write a label map of Mapillary Vistas 1.2: a palette PNG of ids, with colours of config.json."""
    colours = np.zeros((66, 3), np.uint8)
    colours[[7, 13, 15]] = (
        (128, 64, 255),
        (128, 64, 128),
        (244, 35, 232),
    )  # bike lane, road, sidewalk
    colours[[17, 24]] = (70, 70, 70), (255, 255, 255)  # building, general lane marking
    colours[[30, 55]] = (107, 142, 35), (0, 0, 142)  # vegetation, car
    picture = Image.fromarray(ids.astype(np.uint8))
    picture.putpalette(colours.ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def put_synthia(path: Path, ids: np.ndarray) -> Path:
    """Write a SYNTHIA label map: a 16-bit RGB PNG of class id, instance id and a constant."""
    rgb = np.zeros((*ids.shape, 3), np.uint16)
    rgb[..., 0], rgb[..., 1], rgb[..., 2] = ids, 777, 3
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), rgb[..., ::-1])  # OpenCV orders channels blue, green, red
    return path


def ids_of(*ids: int, size: tuple[int, int] = (6, 9)) -> np.ndarray:
    """Return uint8 (H, W) ids, repeated over the columns."""
    return np.resize(np.array(ids, np.uint8), size[1])[None].repeat(size[0], 0)


def gta5(root: Path, *label_maps: np.ndarray) -> Path:
    """Write images/00001.png and labels/00001.png, and so on; return the root."""
    for number, ids in enumerate(label_maps, 1):
        put(root / "images" / f"{number:05}.png", noise(*ids.shape))
        put_palette(root / "labels" / f"{number:05}.png", ids)
    return root


def synthia(root: Path, *label_maps: np.ndarray) -> Path:
    """Write RGB/0000000.png and GT/LABELS/0000000.png, and so on; return the root."""
    for number, ids in enumerate(label_maps):
        put(root / "RGB" / f"{number:07}.png", noise(*ids.shape))
        put_synthia(root / "GT" / "LABELS" / f"{number:07}.png", ids)
    return root


def camvid(root: Path, *label_maps: np.ndarray) -> Path:
    """Write images/train and labels/train with the names of a CamVid drive; return the root."""
    for number, ids in enumerate(label_maps):
        name = f"train/0001TP_{number:06}.png"
        put(root / "images" / name, noise(*ids.shape))
        put(root / "labels" / name, ids)
    return root


def plain(root: Path, *label_maps: np.ndarray, classes: str = "") -> Path:
    """Write images/, labels/ and a class list if there is one; return the root."""
    for number, ids in enumerate(label_maps):
        put(root / "images" / f"{number}.png", noise(*ids.shape))
        put(root / "labels" / f"{number}.png", ids)
    if classes:
        (root / "classes.txt").write_text(classes)
    return root


def cityscapes(root: Path, label_ids: np.ndarray, train_ids: np.ndarray | None = None) -> Path:
    """Write leftImg8bit/ and gtFine/ with labelIds and optional labelTrainIds; return the root."""
    put(root / "leftImg8bit/train/aachen/a_leftImg8bit.png", noise(*label_ids.shape))
    put(root / "gtFine/train/aachen/a_gtFine_labelIds.png", label_ids)
    if train_ids is not None:
        put(root / "gtFine/train/aachen/a_gtFine_labelTrainIds.png", train_ids)
    return root
