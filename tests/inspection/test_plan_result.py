"""Plans as values and as lines for people."""

from __future__ import annotations

import pytest

from sfss_ray.inspection.plan_result import Plan, Stage

MASKS = Stage("masks", 7, "images", 2.0, 3, 100.0, 10.0, "12 masks on this image")
TRAINING = Stage("training", 400, "steps", 1.5, 1, 900.0, 50.0)


def plan_of(**changes) -> Plan:
    values = {
        "found": {"source model": "source.pt: compact, cityscapes-19", "device": "cpu"},
        "missing": {},
        "device": "cpu",
        "class_set": "cityscapes-19",
        "images": 8,
        "held_out": 1,
        "labelled": 2,
        "masks_to_make": 7,
        "num_steps": 400,
        "batch_size": 2,
        "crop_size": (64, 96),
        "trials": 0,
        "stages": (MASKS, TRAINING),
        "not_measured": (),
        "free_mb": 5000.0,
        "seconds": 3.2,
    }
    return Plan(**(values | changes))


@pytest.mark.parametrize(
    ("units", "at_once", "seconds"), [(7, 3, 6.0), (6, 3, 4.0), (1, 3, 2.0), (0, 3, 0.0)]
)
def test_the_processes_of_a_stage_share_its_units_in_rounds(units, at_once, seconds):
    assert Stage("masks", units, "images", 2.0, at_once, 1.0, 1.0).seconds == seconds


def test_totals_are_those_of_the_stages():
    plan = plan_of()
    assert plan.total_seconds == 6.0 + 600.0
    assert plan.disk_mb == 60.0
    assert plan_of(stages=()).total_seconds == 0


def test_a_plan_without_problems_is_ready():
    lines = plan_of().lines()
    assert lines[0] == "  found    source model: source.pt: compact, cityscapes-19"
    assert "target images: 8, 1 of them held out for label-free scores; labelled: 2" in lines
    assert "training: a training of 400 steps of 2 crops 64x96" in lines
    assert "  total 10 min, 60 MB of disk (5000 MB free)" in lines
    assert lines[-1] == "ready: nothing is missing (planned in 3 s, nothing was started)"


def test_every_stage_has_a_row_with_its_cost():
    (row,) = [line for line in plan_of().lines() if line.startswith("  masks ")]
    expected = "masks 7 images 2.00 s 3 6 s 100 MB 10 MB 12 masks on this image"
    assert row.split() == expected.split()


def test_a_search_is_trials_and_a_last_training():
    lines = plan_of(trials=5).lines()
    assert "training: 5 trials and a last training of 400 steps of 2 crops 64x96" in lines


def test_missing_inputs_are_listed_and_make_a_plan_not_ready():
    problems = {"target images": "no image in 'images'", "device": "the cluster has no GPU"}
    plan = plan_of(missing=problems, stages=(), not_measured=("masks: not measured",))
    assert not plan.ready
    lines = plan.lines()
    assert "  MISSING  target images: no image in 'images'" in lines
    assert "  masks: not measured" in lines
    assert lines[-1].startswith("not ready: 2 missing, see above")
    assert not any("at once" in line for line in lines), "no table without stages"


@pytest.mark.parametrize(("free_mb", "warned"), [(59.0, True), (60.0, False)])
def test_a_disk_too_small_is_warned_of(free_mb, warned):
    lines = plan_of(free_mb=free_mb).lines()
    assert ("  WARNING: the disk is too small" in lines) is warned
