"""The appearance of a scene: light, materials, shading of a canvas, and a camera's lens and sensor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from sfss_ray.streets.canvas import TEXTURES, Canvas, Material, PartTable
from sfss_ray.streets.styles import Range, Style

_TILE = 128  # texels along a texture tile
_FAR = 400.0  # metres; the greatest depth
_SHADOW = 0.85  # share of the sunlight that a cast shadow removes
_CONTACT = 0.6  # share of all light removed directly below a body


def draw(rng: np.random.Generator, limits: Range) -> float:
    """Draw a uniform number within (low, high)."""
    return float(rng.uniform(*limits))


@dataclass(frozen=True)
class Appearance:
    """Light and materials of one scene; colours are (3,) RGB in [0, 1]."""

    style: Style
    sun: np.ndarray  # colour times strength; zero if overcast
    ambient: np.ndarray
    sun_direction: tuple[float, float, float]  # unit vector towards the sun
    zenith: np.ndarray
    horizon: np.ndarray
    clouds: float
    haze: float  # per metre
    texture_gain: float
    palette: dict[str, Material]  # surface -> its shared material

    def shadow(self) -> tuple[float, float] | None:
        """Return the ground offset (x, z) of the shadow of a point 1 m high, or None if overcast."""
        if self.sun.max() <= 0.05:
            return None
        x, y, z = self.sun_direction
        return -x / y, -z / y

    def lit(self, normal: tuple[float, float, float]) -> float:
        """Return the share of the sunlight that a surface with this unit normal receives."""
        return max(0.0, sum(s * n for s, n in zip(self.sun_direction, normal, strict=True)))

    def material(self, name: str, rng: np.random.Generator) -> Material:
        """Draw a new variant of the surface `name`."""
        surfaces = self.style.surfaces[name]
        colour, texture, contrast, density = surfaces[rng.integers(len(surfaces))]
        jitter = self.style.colour_jitter
        brightness, *tints = rng.standard_normal(4).tolist()
        gains = [1 + jitter * (brightness + 0.3 * tint) for tint in tints]
        varied_colour = tuple(
            min(max(c * gain, 0.02), 1.0) for c, gain in zip(colour, gains, strict=True)
        )
        return Material(varied_colour, texture, contrast * self.texture_gain, density)

    def shared(self, name: str) -> Material:
        """Return the variant of the surface `name` that the whole scene shares."""
        return self.palette[name]


def sample_appearance(style: Style, rng: np.random.Generator) -> Appearance:
    """Draw the light, sky, haze and shared surfaces of a scene."""
    strength = max(0.0, draw(rng, style.sun))
    warmth = draw(rng, style.warmth)
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 1.15)
    level = np.cos(elevation)
    direction = (level * np.cos(azimuth), np.sin(elevation), level * np.sin(azimuth))
    zenith, horizon = (np.asarray(c) for c in style.sky[rng.integers(len(style.sky))])
    ambient = draw(rng, style.ambient) * (0.85 + 0.15 * zenith / zenith.mean())
    appearance = Appearance(
        style=style,
        sun=strength * np.array([1 + warmth / 2, 1.0, 1 - warmth]),
        ambient=ambient,
        sun_direction=(float(direction[0]), float(direction[1]), float(direction[2])),
        zenith=zenith * rng.uniform(0.9, 1.05),
        horizon=horizon * rng.uniform(0.92, 1.03),
        clouds=draw(rng, style.clouds),
        haze=draw(rng, style.haze),
        texture_gain=draw(rng, style.texture_gain),
        palette={},
    )
    shared = {name: appearance.material(name, rng) for name in style.surfaces}
    appearance.palette.update(shared)
    return appearance


@lru_cache(maxsize=1)
def _texture_tiles() -> np.ndarray:
    """Return one tile per texture, float32 (textures, _TILE, _TILE), mostly within [-1, 1].

    The tiles are the same in every scene; their mean is near 0.
    """
    rng = np.random.default_rng(20)
    row, column = np.mgrid[:_TILE, :_TILE]
    grain = rng.standard_normal((_TILE, _TILE)) * 0.6
    smooth = _octaves(rng, (32, 16, 8, 4))
    leaf = np.tanh(2.5 * _octaves(rng, (8, 4, 2))) + 0.3 * grain
    # Every other row of bricks is shifted by half a brick.
    odd = (row // 4) % 2
    joints = (row % 4 == 0) | ((column + 4 * odd) % 8 == 0)
    stones = rng.standard_normal((_TILE // 4, _TILE // 8))
    brick = np.where(joints, 1.0, 0.5 * stones[row // 4, ((column + 4 * odd) // 8) % 16] - 0.2)
    seams = (row % 8 == 0) | (column % 8 == 0)
    slab = np.where(seams, -1.4, 0.4 * stones[row // 8, column // 8] + 0.2) + 0.2 * grain
    boards = rng.standard_normal(_TILE // 2)
    plank = 0.7 * boards[column // 2] - 0.8 * (column % 4 == 0) + 0.3 + 0.2 * smooth
    tiles = (smooth, grain, brick, slab, leaf, plank)  # in the order of TEXTURES
    return np.stack(tiles).astype(np.float32)


def _octaves(rng: np.random.Generator, cells: tuple[int, ...]) -> np.ndarray:
    """Return periodic smooth noise with details of the given sizes in texels."""
    total = np.zeros((_TILE, _TILE), np.float32)
    for weight, cell in zip(np.linspace(1, 0.5, len(cells)), cells, strict=True):
        coarse = rng.standard_normal((_TILE // cell, _TILE // cell)).astype(np.float32)
        wrapped = np.pad(coarse, 2, mode="wrap")
        fine = cv2.resize(wrapped, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
        total += weight * fine[2 * cell : 2 * cell + _TILE, 2 * cell : 2 * cell + _TILE]
    return total / total.std() * 0.6


def shade(canvas: Canvas, appearance: Appearance, sky: int, rng: np.random.Generator) -> np.ndarray:
    """Return the linear light of a finished canvas.

    Args:
        canvas: Its `finish` has been called.
        appearance: Light and haze of the scene.
        sky: Part id of the sky.
        rng: The source of random numbers.

    Returns:
        float32 (rows, columns, 3).
    """
    table, ids = canvas.table(), canvas.ids
    right, down = canvas.camera.rays()
    depth = 1 / np.maximum(_inverse_depth(table, ids, right, down), 1 / _FAR)
    ground = table.ground.take(ids)
    factor = _texture(canvas, table, depth, right, down, rng)
    factor *= 1 - _CONTACT * _contact(canvas) * ground
    shaded = (canvas.sun_mask > 0) & ground
    image = _lit_colours(table, appearance).take(ids + len(table.label) * shaded, axis=0)
    # Haze blends every colour into that of the horizon, exponentially with depth.
    transmission = np.exp(-appearance.haze * depth)
    image *= (factor * transmission)[..., None]
    image += (1 - transmission)[..., None] * appearance.horizon.astype(np.float32)
    is_sky = ids == sky
    image[is_sky] = _sky(appearance, down, is_sky, rng)
    return image


def _inverse_depth(
    table: PartTable, ids: np.ndarray, right: np.ndarray, down: np.ndarray
) -> np.ndarray:
    """Return the inverse depth of each pixel from the plane of its part."""
    per_right, per_down, constant = (np.ascontiguousarray(c) for c in table.plane.T)
    return per_right.take(ids) * right + per_down.take(ids) * down + constant.take(ids)


def _lit_colours(table: PartTable, appearance: Appearance) -> np.ndarray:
    """Return float32 (2 * parts, 3) colours: of all parts in the sun, then of all in a shadow."""
    shares = np.concatenate([table.lit, table.lit * (1 - _SHADOW)])[:, None]
    colours = np.concatenate([table.colour, table.colour])
    return (colours * (shares * appearance.sun + appearance.ambient)).astype(np.float32)


def _texture(
    canvas: Canvas,
    table: PartTable,
    depth: np.ndarray,
    right: np.ndarray,
    down: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the brightness factor of each pixel from texture tiles that are fixed to the world.

    Textures fade where their details are smaller than a pixel.
    """
    ids = canvas.ids
    ground, density = table.ground.take(ids), table.density.take(ids)
    across, texels = right * depth, depth * density
    u = np.where(ground, right * texels, (across + depth) * density)
    v = np.where(ground, texels, down * texels)
    row = (v.astype(np.int32) + rng.integers(_TILE, dtype=np.int32)) & (_TILE - 1)
    column = (u.astype(np.int32) + rng.integers(_TILE, dtype=np.int32)) & (_TILE - 1)
    texel = (table.texture.take(ids) * _TILE + row) * _TILE + column
    visible = np.minimum(1, np.float32(0.8 * canvas.camera.focal) / texels)
    return 1 + table.contrast.take(ids) * _texture_tiles().ravel().take(texel) * visible


def _contact(canvas: Canvas) -> np.ndarray:
    """Return the (rows, columns) contact shadow in [0, 1] with soft edges."""
    side = max(3, canvas.camera.rows // 50) | 1
    return cv2.blur(canvas.contact_mask, (side, side)).astype(np.float32) / 255


def _sky(
    appearance: Appearance, down: np.ndarray, is_sky: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the (n, 3) colours of the n pixels of the sky: a gradient with clouds."""
    elevation = np.clip(-1.6 * down[is_sky], 0, 1)[:, None]
    smooth = _texture_tiles()[TEXTURES.index("smooth")]
    coarse = np.roll(smooth, tuple(rng.integers(_TILE, size=2)), (0, 1))[: _TILE // 2]
    clouds = cv2.resize(coarse, is_sky.shape[::-1], interpolation=cv2.INTER_LINEAR)[is_sky]
    cover = np.clip(clouds + appearance.clouds - 0.4, 0, 0.8)[:, None] * (appearance.clouds > 0.1)
    clear = appearance.horizon * (1 - elevation) + appearance.zenith * elevation
    return clear + cover * (0.97 * appearance.horizon.max() - clear) * (1 - 0.25 * cover)


def develop(image: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Return the photo of linear light as lens, sensor and file format would change it.

    Args:
        image: float32 (H, W, 3) linear light.
        style: Ranges of exposure, colour, blur, noise and compression.
        rng: The source of random numbers.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    rows, columns = image.shape[:2]
    image = image * np.array([draw(rng, c) for c in style.cast], np.float32)
    image *= draw(rng, style.exposure) * _vignette(rows, columns, draw(rng, style.vignette))
    grey = image.mean(-1, keepdims=True)
    image = grey + draw(rng, style.saturation) * (image - grey)
    image = 0.45 + draw(rng, style.contrast) * (image - 0.45)
    sigma = draw(rng, style.blur) * rows / 128
    if sigma > 0.2:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image = np.clip(image, 0, 1)
    image += draw(rng, style.noise) * noise * (0.5 + np.sqrt(image))
    pixels = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    return pixels if style.jpeg is None else _recompress(pixels, int(rng.integers(*style.jpeg)))


def _vignette(rows: int, columns: int, strength: float) -> np.ndarray:
    """Return (rows, columns, 1) factors that darken the corners."""
    y = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, columns, dtype=np.float32)
    return (1 - strength * (x**2 + y**2) / 2)[..., None]


def _recompress(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Return the pixels after JPEG compression."""
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if decoded is None:
        raise RuntimeError(f"OpenCV could not read back its own JPEG of quality {quality}")
    return np.ascontiguousarray(decoded[..., ::-1])
