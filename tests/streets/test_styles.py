"""The styles of the two domains."""

from __future__ import annotations

from dataclasses import fields

import pytest

from sfss_ray.streets.canvas import TEXTURES
from sfss_ray.streets.scenes import DOMAINS
from sfss_ray.streets.styles import STYLES

RANGES = [f.name for f in fields(STYLES["game"]) if f.type == "Range"]


def test_every_domain_has_a_style():
    assert tuple(STYLES) == DOMAINS


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("name", RANGES)
def test_ranges_are_ordered(name, domain):
    low, high = getattr(STYLES[domain], name)
    assert low <= high


@pytest.mark.parametrize("domain", DOMAINS)
def test_surfaces_have_known_textures_and_valid_colours(domain):
    for name, surfaces in STYLES[domain].surfaces.items():
        assert surfaces, name
        for colour, texture, contrast, density in surfaces:
            assert texture in TEXTURES
            assert all(0 <= channel <= 1 for channel in colour)
            assert contrast >= 0
            assert density > 0


def test_both_domains_have_the_same_surfaces_and_lots():
    game, camera = STYLES["game"], STYLES["camera"]
    assert set(game.surfaces) == set(camera.surfaces)
    assert set(game.lots) == set(camera.lots) == {"building", "park", "gap"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_chances_are_probabilities(domain):
    style = STYLES[domain]
    chances = [style.verge_chance, style.roof_chance, style.parked_chance, style.bonnet_chance]
    assert all(0 <= chance <= 1 for chance in chances)
    assert min(style.lanes) >= 1
    assert style.jpeg is None or 0 < style.jpeg[0] < style.jpeg[1] <= 100
