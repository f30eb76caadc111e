"""Light, materials, shading and the camera's sensor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from street_brushes import HORIZON, make_brush

from sfss_ray.streets.appearance import Appearance, develop, draw, sample_appearance, shade
from sfss_ray.streets.brush import Brush, footprint, ground_quad
from sfss_ray.streets.canvas import Canvas, Material
from sfss_ray.streets.styles import STYLES
from sfss_ray.streets.surroundings import paint_sky

OFF = (0.0, 0.0)
ONE = (1.0, 1.0)
# A style whose photo is the light itself.
NEUTRAL = replace(
    STYLES["camera"],
    exposure=ONE,
    cast=(ONE, ONE, ONE),
    saturation=ONE,
    contrast=ONE,
    vignette=OFF,
    blur=OFF,
    noise=OFF,
    jpeg=None,
)


def sunny(**changes) -> Appearance:
    """Return an appearance with the sun at an angle of 45 degrees from the right."""
    appearance = sample_appearance(STYLES["game"], np.random.default_rng(0))
    direction = (2**-0.5, 2**-0.5, 0.0)
    values = {"sun": np.ones(3), "sun_direction": direction, "haze": 0.0} | changes
    return replace(appearance, **values)


def test_draws_lie_in_their_range():
    rng = np.random.default_rng(0)
    numbers = [draw(rng, (2.0, 3.0)) for _ in range(100)]
    assert all(2 <= number <= 3 for number in numbers)
    assert draw(rng, (0.5, 0.5)) == 0.5


def test_the_shadow_of_a_point_lies_opposite_the_sun():
    assert sunny().shadow() == pytest.approx((-1.0, 0.0))
    assert sunny(sun=np.zeros(3)).shadow() is None


def test_the_share_of_sunlight_is_the_cosine_to_the_normal():
    appearance = sunny()
    assert appearance.lit((0, 1, 0)) == pytest.approx(np.cos(np.pi / 4))
    assert appearance.lit((2**-0.5, 2**-0.5, 0)) == pytest.approx(1)
    assert appearance.lit((-1, 0, 0)) == 0


@pytest.mark.parametrize("domain", STYLES)
def test_sampled_appearances_are_valid(domain):
    style = STYLES[domain]
    for seed in range(20):
        appearance = sample_appearance(style, np.random.default_rng(seed))
        assert np.linalg.norm(appearance.sun_direction) == pytest.approx(1)
        assert appearance.sun_direction[1] > 0
        assert (appearance.sun >= 0).all()
        assert set(appearance.palette) == set(style.surfaces)
        assert appearance.shared("road") is appearance.shared("road")


def test_material_variants_keep_the_texture_and_vary_the_colour():
    appearance, rng = sunny(texture_gain=0.5), np.random.default_rng(0)
    (surface,) = appearance.style.surfaces["tyre"]
    variants = [appearance.material("tyre", rng) for _ in range(20)]
    assert {v.texture for v in variants} == {surface[1]}
    assert {v.contrast for v in variants} == {surface[2] * 0.5}
    assert len({v.colour for v in variants}) == 20
    assert all(0.02 <= channel <= 1 for v in variants for channel in v.colour)


def ground_light(appearance: Appearance, shadow: tuple[float, float] | None) -> np.ndarray:
    """Return the light of untextured ground with the shadow of a body on it."""
    rng = np.random.default_rng(0)
    canvas = Canvas(make_brush().canvas.camera, shadow)
    brush = Brush(canvas, appearance, rng)
    sky = paint_sky(brush)
    ground = brush.ground_part(canvas.new_instance(), "road", Material((0.5, 0.5, 0.5)))
    canvas.fill(ground, ground_quad(-800, 800, 0.0, 800))
    canvas.cast_shadow(footprint(0.0, 8.0, 4.0, 4.0), 0.0)
    canvas.finish()
    return shade(canvas, appearance, sky, rng)


def test_light_on_the_ground_is_sun_plus_ambient_and_shadows_remove_sun():
    appearance = sunny(ambient=np.full(3, 0.3))
    light = ground_light(appearance, (0.0, 0.0))
    lit = appearance.lit((0, 1, 0))
    assert light[-1, 0] == pytest.approx(0.5 * (lit + 0.3), rel=1e-4)
    shaded = int(make_brush().canvas.camera.project(np.array([0.0, 0.0, 8.0]))[1])
    assert light[shaded, 100] == pytest.approx(0.5 * (0.15 * lit + 0.3), rel=1e-4)
    without_shadow = ground_light(appearance, None)
    assert without_shadow[shaded, 100] == pytest.approx(light[-1, 0], rel=1e-4)


def test_haze_blends_far_ground_into_the_horizon():
    appearance = sunny(haze=0.05)
    light = ground_light(appearance, None)
    difference = np.abs(light - appearance.horizon).sum(-1)[:, 0]
    assert difference[HORIZON + 1] < 0.1 * difference[-1]
    rows = difference[HORIZON + 1 :]
    assert (np.diff(rows) > 0).all()


def test_a_neutral_camera_only_quantises():
    light = np.random.default_rng(0).random((20, 30, 3), dtype=np.float32)
    before = light.copy()
    photo = develop(light, NEUTRAL, np.random.default_rng(1))
    assert photo.dtype == np.uint8
    assert np.abs(photo - light * 255).max() <= 0.5 + 1e-3
    assert np.array_equal(light, before)


def test_exposure_saturation_and_vignette_act_as_named():
    light = np.full((21, 31, 3), (0.5, 0.25, 0.25), np.float32)
    rng = np.random.default_rng(0)
    dark = develop(light, replace(NEUTRAL, exposure=(0.5, 0.5)), rng)
    assert dark[0, 0].tolist() == [64, 32, 32]
    grey = develop(light, replace(NEUTRAL, saturation=OFF), rng)
    assert np.ptp(grey) == 0
    corners = develop(light, replace(NEUTRAL, vignette=(0.5, 0.5)), rng)
    assert corners[10, 15, 0] == 128
    assert corners[0, 0, 0] == 64


def test_compression_changes_pixels_a_little():
    light = np.random.default_rng(0).random((32, 32, 3), dtype=np.float32)
    plain = develop(light, NEUTRAL, np.random.default_rng(1)).astype(int)
    packed = develop(light, replace(NEUTRAL, jpeg=(90, 91)), np.random.default_rng(1)).astype(int)
    assert 0 < np.abs(plain - packed).mean() < 60
    smooth = np.full((32, 32, 3), 0.5, np.float32)
    packed = develop(smooth, replace(NEUTRAL, jpeg=(90, 91)), np.random.default_rng(1)).astype(int)
    assert np.abs(packed - 128).max() <= 2
