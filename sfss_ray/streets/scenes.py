"""Procedural street scenes with labels, in the two domains "game" and "camera"."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sfss_ray.storage.files import write_bytes, writing
from sfss_ray.streets.appearance import develop, draw, sample_look, shade
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
_SMALLEST = 32  # pixels along either side
_OVERSAMPLING = 2  # painted pixels per image pixel and axis


@dataclass(frozen=True)
class Scene:
    """One rendered view; all arrays cover the same H x W pixels.

    image: uint8 (H, W, 3), RGB. labels: uint8 (H, W), Cityscapes train ids, 255 is ignored.
    instances: int32 (H, W), an id above 0 per object or stuff segment, 0 is none.
    parts: int32 (H, W), finer ids above 0 (windows, wheels, roofs); 0 where instances is 0.
    Each part belongs to one instance, each instance has one label.
    """

    image: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    parts: np.ndarray


def render_scene(domain: str, seed: int, index: int, size: tuple[int, int] = (128, 256)) -> Scene:
    """Render scene `index` >= 0 of the endless set (`domain`, `seed` >= 0).

    `size` is (height, width) in pixels, each at least 32. The same arguments give the same bytes.
    Raises ValueError for an unknown domain, a negative seed or index and a size too small.
    """
    _check(domain, seed, index, size)
    rng = np.random.default_rng([zlib.crc32(domain.encode()), seed, index])
    style = STYLES[domain]
    look = sample_look(style, rng)
    camera = _sample_camera(style, rng, size)
    brush = Brush(Canvas(camera, look.shadow()), look, rng)
    sky = _paint(brush)
    light = shade(brush.canvas, look, sky, rng)
    light = cv2.resize(light, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    table = brush.canvas.table()
    parts = np.ascontiguousarray(brush.canvas.ids[::_OVERSAMPLING, ::_OVERSAMPLING])
    instances = table.instance[parts]
    labels = table.label[parts]
    parts = np.where(instances > 0, parts, 0).astype(np.int32)
    return Scene(develop(light, style, rng), labels, instances, parts)


def _check(domain: str, seed: int, index: int, size: tuple[int, int]) -> None:
    if domain not in DOMAINS:
        raise ValueError(f"domain is {domain!r}, but must be one of {', '.join(DOMAINS)}")
    for name, value in (("seed", seed), ("index", index)):
        if value < 0:
            raise ValueError(f"{name} is {value}, but must be 0 or more")
    if len(size) != 2 or min(size) < _SMALLEST:
        raise ValueError(
            f"size is {tuple(size)}, but must be (height, width), each {_SMALLEST} or more"
        )


def _sample_camera(style: Style, rng: np.random.Generator, size: tuple[int, int]) -> Camera:
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


def _paint(brush: Brush) -> int:
    """Paint a whole street and return the part id of its sky."""
    sky = paint_sky(brush)
    layout = sample_layout(brush)
    paint_ground(brush, layout)
    paint_backdrop(brush, layout)
    paint_lots(brush, layout)
    paint_street_life(brush, layout)
    brush.canvas.finish()
    if brush.rng.random() < brush.look.style.bonnet_chance:
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
    start: int = 0,
) -> None:
    """Write scenes `start` to `start + count - 1` below `root`; files that exist are kept.

    Writes images/00000.png (RGB) and, `with_labels`, labels/00000.png (train ids, one channel).
    Raises ValueError like `render_scene`, and for a negative count.
    """
    _check(domain, seed, start, size)
    if count < 0:
        raise ValueError(f"count is {count}, but must be 0 or more")
    folders = ("images", "labels") if with_labels else ("images",)
    for folder in folders:
        with writing(Path(root) / folder):
            (Path(root) / folder).mkdir(parents=True, exist_ok=True)
    for index in range(start, start + count):
        paths = [Path(root) / folder / f"{index:05d}.png" for folder in folders]
        if all(path.exists() for path in paths):
            continue
        scene = render_scene(domain, seed, index, size)
        for path, pixels in zip(paths, (scene.image[..., ::-1], scene.labels), strict=False):
            if not path.exists():
                _write_png(path, pixels)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    """Write through a temporary file, so that a broken run leaves no half-written image."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(pixels))
    if not done:
        raise OSError(f"{path} could not be encoded as PNG")
    write_bytes(path, data.tobytes())
