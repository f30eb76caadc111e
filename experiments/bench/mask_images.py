"""Images for the mask benchmarks, and the settings of the shipped small SAM."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sfss_ray.masks.sam.networks import shipped_small_sam

CITYSCAPES = (1024, 2048)
CAMVID = (360, 480)
SMALL_SETTINGS = json.loads(shipped_small_sam().with_suffix(".json").read_text())["generator"]


@dataclass(frozen=True)
class Options:
    """Options of the command line.

    Attributes:
        data: folder with camvid/ and cityscapes_sample/.
        device: cpu or cuda.
        images: CamVid images of the comparison.
        repeats: calls per median. `stock_repeats` is for the slow stock generator.
        compared: folder for the results of compared images.
        points_per_side: of the networks of transformers; None for 16, or 32 with published sizes.
    """

    data: Path
    device: str
    images: int
    repeats: int
    stock_repeats: int
    compared: Path
    points_per_side: int | None = None


def camvid(options: Options, count: int) -> list[np.ndarray]:
    """Return the first `count` images of val, RGB."""
    return _read(sorted((options.data / "camvid" / "images" / "val").glob("*.jpg"))[:count])


def cityscapes(options: Options) -> list[np.ndarray]:
    """Return all four images, RGB."""
    folder = options.data / "cityscapes_sample" / "leftImg8bit"
    return _read(sorted(folder.rglob("*_leftImg8bit.png")))


def _read(files: list[Path]) -> list[np.ndarray]:
    if not files:
        raise SystemExit("no images: give --data, a folder with camvid/ and cityscapes_sample/")
    return [cv2.cvtColor(_pixels(file), cv2.COLOR_BGR2RGB) for file in files]


def _pixels(file: Path) -> np.ndarray:
    pixels = cv2.imread(str(file))
    if pixels is None:
        raise SystemExit(f"{file} is not an image")
    return pixels


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's warnings about the stock generator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
