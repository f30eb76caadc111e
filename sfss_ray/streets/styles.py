"""The styles of the two domains: ranges of the street layout, the materials and the light."""

from __future__ import annotations

from dataclasses import dataclass, field

Range = tuple[float, float]
Colour = tuple[float, float, float]
Surface = tuple[Colour, str, float, float]  # albedo, texture, contrast, texels per metre


@dataclass(frozen=True)
class Style:
    """The style of a domain. Ranges are uniform (low, high), lengths in metres, chances in [0, 1]."""

    focal: Range  # share of the image width
    horizon: Range  # share of the image height, from the top
    camera_height: Range
    roll: Range  # radians
    lane_width: Range
    lanes: tuple[int, ...]  # total numbers of lanes to choose from
    sidewalk: Range
    verge_chance: float
    lots: dict[str, float]  # relative weights of building, park and gap
    floors: tuple[int, int]
    roof_chance: float
    parked_chance: float
    traffic: Range  # vehicles per lane and 100 m
    people: Range  # per side and 100 m
    cyclists: Range  # per scene
    tree_spacing: Range
    lamp_spacing: Range
    signs: Range  # per scene
    bonnet_chance: float
    surfaces: dict[str, list[Surface]] = field(repr=False)
    colour_jitter: float  # per material, relative
    sun: Range
    ambient: Range
    warmth: Range  # of the sun, negative is cold
    sky: list[tuple[Colour, Colour]]  # zenith, horizon
    clouds: Range
    haze: Range  # per metre
    texture_gain: Range
    exposure: Range
    cast: tuple[Range, Range, Range]  # gain of red, green, blue
    saturation: Range
    contrast: Range
    vignette: Range
    blur: Range  # standard deviation in pixels at 128 rows
    noise: Range
    jpeg: tuple[int, int] | None  # range of the quality; None for no compression


_CARS_BRIGHT = [(0.8, 0.1, 0.1), (0.1, 0.25, 0.75), (0.95, 0.8, 0.1), (0.92, 0.92, 0.92)]
_CARS_DULL = [(0.1, 0.1, 0.11), (0.4, 0.41, 0.43), (0.62, 0.63, 0.64), (0.2, 0.22, 0.3)]


def _surfaces(
    colours: list[Colour], texture: str, contrast: float, density: float
) -> list[Surface]:
    """Return one surface per colour."""
    return [(colour, texture, contrast, density) for colour in colours]


GAME = Style(
    focal=(0.55, 0.7),
    horizon=(0.42, 0.5),
    camera_height=(1.5, 2.2),
    roll=(-0.004, 0.004),
    lane_width=(3.4, 4.0),
    lanes=(2, 3, 4, 4),
    sidewalk=(3.0, 5.0),
    verge_chance=0.4,
    lots={"building": 0.68, "park": 0.3, "gap": 0.12},
    floors=(2, 11),
    roof_chance=0.1,
    parked_chance=0.12,
    traffic=(0.8, 2.4),
    people=(1.5, 6.0),
    cyclists=(0.6, 2.2),
    tree_spacing=(16.0, 40.0),
    lamp_spacing=(22.0, 34.0),
    signs=(2.0, 5.0),
    bonnet_chance=0.1,
    surfaces={
        "road": _surfaces(
            [(0.36, 0.36, 0.39), (0.3, 0.31, 0.36), (0.45, 0.43, 0.41)], "grain", 0.08, 9
        ),
        "mark": _surfaces([(0.95, 0.95, 0.93), (0.95, 0.8, 0.25)], "grain", 0.05, 9),
        "sidewalk": _surfaces(
            [(0.68, 0.64, 0.58), (0.6, 0.6, 0.6), (0.72, 0.6, 0.5), (0.5, 0.5, 0.52)],
            "slab",
            0.16,
            10,
        ),
        "kerb": _surfaces([(0.75, 0.74, 0.72)], "grain", 0.05, 9),
        "facade": _surfaces(
            [(0.85, 0.72, 0.52), (0.8, 0.45, 0.32), (0.85, 0.85, 0.82), (0.45, 0.6, 0.68)],
            "smooth",
            0.08,
            6,
        )
        + _surfaces([(0.65, 0.35, 0.27), (0.55, 0.5, 0.45)], "brick", 0.18, 8)
        + _surfaces([(0.4, 0.5, 0.6), (0.62, 0.62, 0.65)], "slab", 0.12, 5),
        "trim": _surfaces([(0.9, 0.88, 0.84), (0.4, 0.35, 0.32)], "smooth", 0.04, 6),
        "roof": _surfaces([(0.6, 0.28, 0.2), (0.35, 0.35, 0.38)], "plank", 0.15, 8),
        "window": _surfaces([(0.35, 0.55, 0.75), (0.2, 0.32, 0.45)], "smooth", 0.3, 4),
        "shop": _surfaces([(0.25, 0.35, 0.4), (0.5, 0.6, 0.65)], "smooth", 0.3, 5),
        "awning": _surfaces([(0.8, 0.2, 0.2), (0.2, 0.5, 0.3), (0.9, 0.7, 0.2)], "plank", 0.25, 6),
        "wall": _surfaces([(0.7, 0.65, 0.58), (0.6, 0.6, 0.6)], "slab", 0.15, 8)
        + _surfaces([(0.62, 0.36, 0.28)], "brick", 0.2, 8),
        "fence": _surfaces(
            [(0.3, 0.22, 0.15), (0.85, 0.85, 0.85), (0.2, 0.3, 0.25)], "plank", 0.3, 9
        ),
        "pole": _surfaces([(0.45, 0.46, 0.48), (0.25, 0.26, 0.28)], "smooth", 0.05, 8),
        "housing": _surfaces([(0.12, 0.12, 0.1), (0.75, 0.6, 0.1)], "smooth", 0.03, 8),
        "trunk": _surfaces([(0.4, 0.28, 0.17)], "plank", 0.25, 16),
        "leaf": _surfaces(
            [(0.22, 0.5, 0.14), (0.3, 0.55, 0.12), (0.15, 0.4, 0.16), (0.3, 0.38, 0.16)],
            "leaf",
            0.38,
            10,
        ),
        "terrain": _surfaces([(0.38, 0.62, 0.2), (0.45, 0.58, 0.25)], "leaf", 0.14, 10)
        + _surfaces([(0.75, 0.66, 0.45)], "grain", 0.1, 8),
        "vehicle": _surfaces([*_CARS_BRIGHT, *_CARS_DULL, (0.1, 0.5, 0.3)], "smooth", 0.04, 4),
        "glass": _surfaces([(0.16, 0.22, 0.28), (0.3, 0.4, 0.48)], "smooth", 0.2, 6),
        "tyre": _surfaces([(0.07, 0.07, 0.08)], "smooth", 0.05, 8),
        "rim": _surfaces([(0.65, 0.65, 0.68)], "smooth", 0.05, 8),
        "skin": _surfaces(
            [(0.9, 0.7, 0.56), (0.6, 0.42, 0.3), (0.35, 0.24, 0.17)], "smooth", 0.03, 8
        ),
        "cloth": _surfaces(
            [
                (0.8, 0.2, 0.2),
                (0.2, 0.35, 0.8),
                (0.9, 0.9, 0.9),
                (0.95, 0.75, 0.2),
                (0.3, 0.3, 0.3),
            ],
            "smooth",
            0.1,
            20,
        ),
        "legs": _surfaces(
            [(0.2, 0.25, 0.45), (0.15, 0.15, 0.17), (0.6, 0.52, 0.4)], "smooth", 0.1, 20
        ),
        "frame": _surfaces(
            [(0.75, 0.15, 0.15), (0.1, 0.3, 0.6), (0.15, 0.15, 0.15)], "smooth", 0, 8
        ),
        "hood": _surfaces([(0.15, 0.15, 0.18)], "smooth", 0.1, 2),
    },
    colour_jitter=0.13,
    sun=(0.1, 0.95),
    ambient=(0.42, 0.7),
    warmth=(-0.05, 0.3),
    sky=[
        ((0.25, 0.5, 0.9), (0.68, 0.83, 0.97)),
        ((0.4, 0.65, 0.95), (0.85, 0.92, 1.0)),
        ((0.3, 0.4, 0.7), (0.98, 0.75, 0.5)),
        ((0.6, 0.68, 0.78), (0.82, 0.86, 0.9)),
    ],
    clouds=(0.0, 0.6),
    haze=(0.0004, 0.004),
    texture_gain=(0.7, 1.2),
    exposure=(0.9, 1.1),
    cast=((0.97, 1.03), (0.98, 1.02), (0.97, 1.03)),
    saturation=(0.8, 1.25),
    contrast=(1.0, 1.15),
    vignette=(0.0, 0.05),
    blur=(0.0, 0.3),
    noise=(0.0, 0.01),
    jpeg=None,
)

CAMERA = Style(
    focal=(0.72, 0.95),
    horizon=(0.36, 0.46),
    camera_height=(1.15, 1.5),
    roll=(-0.02, 0.02),
    lane_width=(2.8, 3.4),
    lanes=(2, 2, 2, 3),
    sidewalk=(2.0, 4.2),
    verge_chance=0.4,
    lots={"building": 0.6, "park": 0.38, "gap": 0.08},
    floors=(2, 6),
    roof_chance=0.6,
    parked_chance=0.5,
    traffic=(0.8, 2.6),
    people=(2.0, 6.5),
    cyclists=(0.6, 2.6),
    tree_spacing=(8.0, 24.0),
    lamp_spacing=(24.0, 40.0),
    signs=(2.0, 5.0),
    bonnet_chance=0.35,
    surfaces={
        "road": _surfaces(
            [(0.46, 0.45, 0.43), (0.38, 0.37, 0.37), (0.53, 0.5, 0.47)], "smooth", 0.16, 5
        )
        + _surfaces([(0.45, 0.42, 0.39)], "slab", 0.2, 24),
        "mark": _surfaces([(0.72, 0.71, 0.68)], "smooth", 0.25, 14),
        "sidewalk": _surfaces(
            [(0.5, 0.47, 0.44), (0.43, 0.42, 0.41), (0.55, 0.45, 0.4)], "slab", 0.16, 18
        )
        + _surfaces([(0.47, 0.45, 0.43)], "grain", 0.12, 10),
        "kerb": _surfaces([(0.55, 0.54, 0.52)], "grain", 0.15, 9),
        "facade": _surfaces(
            [(0.48, 0.3, 0.24), (0.4, 0.33, 0.29), (0.55, 0.4, 0.3)], "brick", 0.22, 12
        )
        + _surfaces(
            [(0.62, 0.58, 0.5), (0.7, 0.68, 0.63), (0.5, 0.5, 0.49), (0.6, 0.52, 0.42)],
            "smooth",
            0.22,
            3,
        ),
        "trim": _surfaces([(0.62, 0.6, 0.56), (0.3, 0.28, 0.26)], "smooth", 0.15, 6),
        "roof": _surfaces([(0.36, 0.22, 0.18), (0.27, 0.27, 0.28)], "plank", 0.25, 9),
        "window": _surfaces(
            [(0.16, 0.18, 0.2), (0.3, 0.31, 0.31), (0.5, 0.52, 0.53)], "leaf", 0.35, 3
        ),
        "shop": _surfaces([(0.2, 0.19, 0.18), (0.4, 0.37, 0.32)], "leaf", 0.45, 4),
        "awning": _surfaces(
            [(0.4, 0.2, 0.18), (0.25, 0.3, 0.28), (0.6, 0.58, 0.5)], "plank", 0.2, 6
        ),
        "wall": _surfaces([(0.46, 0.43, 0.4), (0.55, 0.53, 0.49)], "smooth", 0.25, 4)
        + _surfaces([(0.42, 0.28, 0.23)], "brick", 0.25, 12),
        "fence": _surfaces(
            [(0.33, 0.28, 0.23), (0.2, 0.21, 0.2), (0.5, 0.5, 0.48)], "plank", 0.45, 7
        ),
        "pole": _surfaces(
            [(0.38, 0.39, 0.38), (0.22, 0.23, 0.22), (0.52, 0.52, 0.5)], "grain", 0.1, 8
        ),
        "housing": _surfaces([(0.1, 0.12, 0.1), (0.14, 0.2, 0.15)], "smooth", 0.1, 8),
        "trunk": _surfaces([(0.27, 0.23, 0.19), (0.38, 0.35, 0.3)], "plank", 0.3, 16),
        "leaf": _surfaces(
            [(0.22, 0.32, 0.13), (0.29, 0.36, 0.18), (0.36, 0.32, 0.16), (0.17, 0.26, 0.13)],
            "leaf",
            0.55,
            7,
        ),
        "terrain": _surfaces(
            [(0.35, 0.37, 0.22), (0.42, 0.38, 0.27), (0.3, 0.33, 0.2)], "leaf", 0.3, 6
        ),
        "vehicle": _surfaces(
            [*_CARS_DULL, *_CARS_DULL, (0.85, 0.85, 0.84), (0.45, 0.12, 0.12)], "smooth", 0.15, 2
        ),
        "glass": _surfaces([(0.1, 0.11, 0.12), (0.35, 0.37, 0.39)], "leaf", 0.4, 4),
        "tyre": _surfaces([(0.09, 0.09, 0.09)], "smooth", 0.1, 8),
        "rim": _surfaces([(0.42, 0.42, 0.42), (0.2, 0.2, 0.2)], "smooth", 0.1, 8),
        "skin": _surfaces(
            [(0.75, 0.58, 0.48), (0.5, 0.36, 0.28), (0.3, 0.21, 0.16)], "smooth", 0.1, 8
        ),
        "cloth": _surfaces(
            [
                (0.14, 0.14, 0.16),
                (0.25, 0.27, 0.33),
                (0.45, 0.42, 0.38),
                (0.5, 0.22, 0.2),
                (0.65, 0.64, 0.6),
                (0.25, 0.32, 0.25),
            ],
            "smooth",
            0.25,
            20,
        ),
        "legs": _surfaces(
            [(0.15, 0.17, 0.25), (0.1, 0.1, 0.1), (0.4, 0.36, 0.3)], "smooth", 0.2, 20
        ),
        "frame": _surfaces(
            [(0.15, 0.15, 0.15), (0.4, 0.4, 0.42), (0.35, 0.13, 0.12)], "smooth", 0, 8
        ),
        "hood": _surfaces([(0.12, 0.12, 0.13)], "smooth", 0.3, 2),
    },
    colour_jitter=0.1,
    sun=(-0.5, 0.4),
    ambient=(0.75, 1.0),
    warmth=(-0.1, 0.15),
    sky=[
        ((0.78, 0.8, 0.83), (0.92, 0.93, 0.93)),
        ((0.6, 0.63, 0.67), (0.8, 0.81, 0.82)),
        ((0.55, 0.65, 0.78), (0.87, 0.9, 0.92)),
        ((0.72, 0.72, 0.7), (0.93, 0.88, 0.8)),
    ],
    clouds=(0.2, 0.9),
    haze=(0.0015, 0.007),
    texture_gain=(0.7, 1.3),
    exposure=(0.8, 1.2),
    cast=((0.9, 1.08), (0.96, 1.04), (0.84, 1.06)),
    saturation=(0.65, 1.0),
    contrast=(0.85, 1.05),
    vignette=(0.1, 0.35),
    blur=(0.25, 0.65),
    noise=(0.006, 0.022),
    jpeg=(50, 85),
)

STYLES = {"game": GAME, "camera": CAMERA}
