"""The rows of the ablation: every table compares rows that differ, with settings that exist."""

from __future__ import annotations

import pytest

from sfss_ray.config import Config, override
from sfss_ray.config.space import default_space, parse_space
from sfss_ray.train.baseline import SELF_TRAINING


@pytest.fixture
def rows(experiment):
    return experiment("ablation_rows")


def test_settings_exist_and_differ_within_a_table(rows):
    own = {"quick_ranges": {"train.ema_momentum": 0.99}}
    for name, table in rows.TABLES.items():
        plain = override(Config(), SELF_TRAINING | own.get(name, {}))
        seen = {}
        for row in table:
            if row in (rows.BASELINE, rows.STATISTICS, rows.CEILING):
                continue
            settings = repr((row.regions, override(plain, row.knobs)))
            assert settings not in seen, f"{row.key} is {seen.get(settings)}"
            seen[settings] = row.key


def test_a_key_means_the_same_row_in_every_table(rows):
    by_key = {}
    for table in rows.TABLES.values():
        assert len({row.key for row in table}) == len(table)
        for row in table:
            twin = by_key.setdefault(row.key, row)
            assert (twin.regions, twin.knobs) == (row.regions, row.knobs), row.key


def test_ends_of_a_quick_teacher_are_those_of_its_search(rows):
    own = override(Config(), {"train.ema_momentum": 0.99}).train
    (space,) = (d for d in parse_space(default_space(own.ema_momentum, False)) if "ema" in d.name)
    ends = [row.knobs.get("train.ema_momentum") for row in rows.TABLES["quick_ranges"]]
    assert ends[2:] == pytest.approx(sorted(space.ends))


@pytest.mark.parametrize("regions", ["felzenszwalb", "small_sam", "ground_truth"])
def test_every_design_stands_beside_its_control(rows, regions):
    knobs = {row.key: row.knobs for row in rows.TABLES["news"]}
    vote = knobs["pooled_vote" if regions == "felzenszwalb" else f"vote_{regions}"]
    designs = [key.removesuffix(f"_{regions}") for key in knobs if key.endswith(f"_{regions}")]
    for design in designs:
        assert vote.items() <= knobs[f"{design}_{regions}"].items()
    controls = {
        "rule_out": "rule_out_pixel",
        "neighbours": "neighbours_by_chance",
        "sum_by_sam_twice": "sum_by_chance_twice",
    }
    for design, control in controls.items():
        assert {design, control} <= set(designs)
        ours, other = knobs[f"{design}_{regions}"], knobs[f"{control}_{regions}"]
        assert len(set(other.items()) - set(ours.items())) == 1
    assert {"neighbours_random", "output_random", "rings_random", "vote_random"} <= set(knobs)


def test_the_ranges_are_those_of_a_search(rows):
    ends = {
        row.key: row.knobs
        for row in rows.TABLES["ranges"]
        if row.key not in ("source_only", "full_felzenszwalb")
    }
    assert sorted(ends) == [
        "contrast_weight_0.01",
        "contrast_weight_2",
        "ema_momentum_0.99",
        "ema_momentum_0.9999",
        "temperature_0.03",
        "temperature_0.03_heavy",
        "temperature_0.7",
        "temperature_0.7_heavy",
    ]
    full = next(row for row in rows.TABLES["ranges"] if row.key == "full_felzenszwalb").knobs
    for key, knobs in ends.items():
        other = ends["contrast_weight_2"] if key.endswith("_heavy") else full
        assert len(set(knobs.items()) - set(other.items())) == 1
