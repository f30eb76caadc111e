"""Procedural street scenes with labels, in the two domains "game" and "camera"."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sfss_ray.storage.files import write_bytes, writing
from sfss_ray.streets.appearance import develop, draw, sample_appearance, shade
from sfss_ray.streets.brush import Brush
from sfss_ray.streets.canvas import Camera, Canvas
from sfss_ray.streets.styles import STYLES, Style
from sfss_ray.streets.surroundings import (
    paint_backdrop,
    paint_bonnet,
    paint_ground,
    paint_lots,
    paint_sky,
    sample_layout,
)
from sfss_ray.streets.traffic import paint_street_life

DOMAINS = ("game", "camera")
_MIN_SIDE = 32  # pixels
_OVERSAMPLING = 2  # painted pixels per image pixel and axis


@dataclass(frozen=True)
class Scene:
    """A rendered image with its labels; all arrays have the same height and width.

    Each part belongs to one instance, and each instance has one label.
    """

    image: np.ndarray
    """uint8 (H, W, 3) RGB."""
    labels: np.ndarray
    """uint8 (H, W) Cityscapes train ids, 255 is ignored."""
    instances: np.ndarray
    """int32 (H, W) ids above 0 of objects and stuff segments; 0 is none."""
    parts: np.ndarray
    """int32 (H, W) finer ids above 0 (windows, wheels, roofs); 0 where there is no instance."""


def render_scene(domain: str, seed: int, index: int, size: tuple[int, int] = (128, 256)) -> Scene:
    """Render one scene of an endless set; the same arguments give the same bytes.

    Args:
        domain: "game" or "camera".
        seed: Seed of the set, 0 or more.
        index: Index of the scene in the set, 0 or more.
        size: (height, width) in pixels, each 32 or more.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check_arguments(domain, seed, index, size)
    rng = np.random.default_rng([zlib.crc32(domain.encode()), seed, index])
    style = STYLES[domain]
    appearance = sample_appearance(style, rng)
    camera = _sample_camera(style, rng, size)
    brush = Brush(Canvas(camera, appearance.shadow()), appearance, rng)
    sky = _paint_street(brush)
    light = shade(brush.canvas, appearance, sky, rng)
    light = cv2.resize(light, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    table = brush.canvas.table()
    parts = np.ascontiguousarray(brush.canvas.ids[::_OVERSAMPLING, ::_OVERSAMPLING])
    instances = table.instance[parts]
    labels = table.label[parts]
    parts = np.where(instances > 0, parts, 0).astype(np.int32)
    return Scene(develop(light, style, rng), labels, instances, parts)


def _check_arguments(domain: str, seed: int, index: int, size: tuple[int, int]) -> None:
    if domain not in DOMAINS:
        raise ValueError(f"domain is {domain!r}, but must be one of {', '.join(DOMAINS)}")
    for name, value in (("seed", seed), ("index", index)):
        if value < 0:
            raise ValueError(f"{name} is {value}, but must be 0 or more")
    if len(size) != 2 or min(size) < _MIN_SIDE:
        raise ValueError(
            f"size is {tuple(size)}, but must be (height, width), each {_MIN_SIDE} or more"
        )


def _sample_camera(style: Style, rng: np.random.Generator, size: tuple[int, int]) -> Camera:
    """Draw a camera for a canvas of `_OVERSAMPLING` times the image size."""
    rows, columns = (_OVERSAMPLING * side for side in size)
    return Camera(
        rows=rows,
        columns=columns,
        focal=draw(rng, style.focal) * columns,
        vanish_x=rng.uniform(0.38, 0.62) * columns,
        vanish_y=draw(rng, style.horizon) * rows,
        roll=draw(rng, style.roll),
        height=draw(rng, style.camera_height),
        offset=rng.uniform(0.3, 2.6),
    )


def _paint_street(brush: Brush) -> int:
    """Paint a whole street and return the part id of its sky."""
    sky = paint_sky(brush)
    layout = sample_layout(brush)
    paint_ground(brush, layout)
    paint_backdrop(brush, layout)
    paint_lots(brush, layout)
    paint_street_life(brush, layout)
    brush.canvas.finish()
    if brush.rng.random() < brush.style.bonnet_chance:
        paint_bonnet(brush)
    return sky


def write_streets(
    root: Path,
    domain: str,
    seed: int,
    count: int,
    size: tuple[int, int] = (128, 256),
    *,
    with_labels: bool = True,
) -> None:
    """Write the first scenes of a set as images/00000.png and labels/00000.png, and so on.

    Existing files are kept.

    Args:
        root: Parent of the two folders.
        domain: See `render_scene`.
        seed: See `render_scene`.
        count: Number of scenes, 0 or more.
        size: See `render_scene`.
        with_labels: Whether to write labels (train ids, one channel) beside the RGB images.

    Raises:
        ValueError: an argument is out of its range.
        OutputError: a file cannot be written.
    """
    _check_arguments(domain, seed, 0, size)
    if count < 0:
        raise ValueError(f"count is {count}, but must be 0 or more")
    folders = ("images", "labels") if with_labels else ("images",)
    for folder in folders:
        with writing(Path(root) / folder):
            (Path(root) / folder).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        paths = [Path(root) / folder / f"{index:05d}.png" for folder in folders]
        if all(path.exists() for path in paths):
            continue
        scene = render_scene(domain, seed, index, size)
        for path, pixels in zip(paths, (scene.image[..., ::-1], scene.labels), strict=False):
            if not path.exists():
                _write_png(path, pixels)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG atomically, so that an interrupted run leaves no partial image."""
    is_encoded, data = cv2.imencode(".png", np.ascontiguousarray(pixels))
    if not is_encoded:
        raise OSError(f"{path} could not be encoded as PNG")
    write_bytes(path, data.tobytes())
