"""Arrays of every kind that segment_anything's own generator takes as an image."""

import functools

import numpy as np

from sfss_ray.streets.scenes import render_scene


@functools.cache
def picture():
    """Return a drawn street, uint8 (H, 200, 3)."""
    return np.ascontiguousarray(render_scene("camera", 5, 0).image[:, :200])


def fractions(dtype):
    """Return values of 0 to 255 that are not integers."""
    noise = np.random.default_rng(0).uniform(0, 0.999, picture().shape)
    return np.minimum(picture() + noise, 255).astype(dtype)


def read_only():
    array = picture().copy()
    array.flags.writeable = False
    return array


IMAGES = {
    "float32, integers": lambda: picture().astype(np.float32),
    "float64, integers": lambda: picture().astype(np.float64),
    "float32, fractions": lambda: fractions(np.float32),
    "float64, fractions": lambda: fractions(np.float64),
    "float32 of 0 to 1": lambda: (picture() / 255).astype(np.float32),
    "float64 of 0 to 1": lambda: picture() / 255,
    "float32, a mirrored view": lambda: fractions(np.float32)[:, ::-1],
    "read-only": read_only,
    "read-only float": lambda: np.broadcast_to(fractions(np.float64), picture().shape),
    "mirrored": lambda: picture()[::-1, ::-1],
    "every second pixel": lambda: np.repeat(np.repeat(picture(), 2, 0), 2, 1)[::2, ::2],
    "BGR view": lambda: picture()[..., ::-1],
    "transposed": lambda: np.ascontiguousarray(picture().transpose(1, 0, 2)).transpose(1, 0, 2),
    "Fortran order": lambda: np.asfortranarray(picture()),
    "three of four channels": lambda: np.dstack([picture(), picture()[..., 0]])[..., :3],
    "the network's size": lambda: np.asfortranarray(np.pad(picture(), ((0, 0), (0, 56), (0, 0)))),
}
"""Functions that make an array, by what is special about it."""
