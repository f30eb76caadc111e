"""Settings that do not fit each other are refused before a cluster starts."""

from __future__ import annotations

from pathlib import Path

import pytest

import sfss_ray
from sfss_ray.config import AugmentConfig, ComputeConfig, Config, TrainConfig, override
from sfss_ray.config.consistency import check_keep, check_neighbour_use, check_stage
from sfss_ray.errors import ConfigError
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.streets.scenes import write_streets


@pytest.mark.parametrize(
    ("batch", "workers", "parts", "class_mix", "fine"),
    [
        (4, 2, 1, 0.0, True),
        (3, 1, 1, 0.0, True),
        (2, 2, 1, 0.0, True),
        (3, 2, 1, 0.0, False),
        (4, 2, 1, 0.5, True),
        (2, 1, 1, 1.0, True),
        (2, 2, 1, 0.5, False),
        (3, 1, 1, 0.5, False),
        (6, 2, 1, 0.1, False),
        (8, 2, 4, 0.0, True),
        (8, 2, 3, 0.0, False),
        (8, 2, 2, 0.5, True),
        (4, 2, 2, 0.5, False),
    ],
)
def test_every_worker_has_crops_and_a_neighbour_to_mix(batch, workers, parts, class_mix, fine):
    compute, augment = ComputeConfig(num_workers=workers), AugmentConfig(class_mix=class_mix)
    stage = TrainConfig(batch_size=batch, accumulate=parts, augment=augment)
    if fine:
        check_stage(stage, compute)
        return
    with pytest.raises(ConfigError, match=rf"batch_size is {batch}.* multiple"):
        check_stage(stage, compute)


@pytest.mark.parametrize(
    ("batch", "workers", "parts", "class_mix", "message"),
    [
        (4, "1-4", 1, 0.0, ""),
        (5, "1-4", 1, 0.0, ""),  # uneven shares
        (8, "2-4", 1, 0.5, ""),
        (12, "1-3", 2, 0.5, ""),
        (3, "2-2", 1, 0.0, "batch_size is 3 but there are 2 workers"),
        (
            4,
            "1-8",
            1,
            0.0,
            "1-8 but batch_size 4 has crops for 4 workers only: choose a range up to 4",
        ),
        (4, "3-4", 1, 0.5, "has pairs of crops for 2 workers only.* or a batch_size of 8$"),
        (8, "1-8", 2, 0.0, "batch_size 8 in 2 parts has crops for 4 workers.* batch_size of 16$"),
        (
            5,
            "1-2",
            1,
            0.5,
            r"batch_size is 5, accumulate is 1 and augment.class_mix is 0\.5: .* of 2$",
        ),
        (8, "1-2", 3, 0.0, "batch_size is 8, accumulate is 3: choose a multiple of 3"),
    ],
)
def test_every_number_of_a_range_has_crops_for_each_worker(
    batch, workers, parts, class_mix, message
):
    compute, augment = ComputeConfig(num_workers=workers), AugmentConfig(class_mix=class_mix)
    stage = TrainConfig(batch_size=batch, accumulate=parts, augment=augment)
    if not message:
        check_stage(stage, compute)
        return
    with pytest.raises(ConfigError, match=message) as refused:
        check_stage(stage, compute)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("stage", ["train", "pretrain"])
def test_a_warm_up_to_the_last_step_is_refused(stage):
    """Whatever the order in which its knobs are set."""

    def check(**knobs):
        config = override(
            Config(), {f"{stage}.{k.replace('__', '.')}": v for k, v in knobs.items()}
        )
        check_stage(getattr(config, stage), ComputeConfig())

    check(num_steps=1501, optim__warmup_steps=1500)
    check(optim__warmup_steps=5000, num_steps=40000)
    for knobs in ({"num_steps": 1500, "optim__warmup_steps": 1500}, {"optim__warmup_share": 1.0}):
        with pytest.raises(ConfigError, match="rise until the last step; lower warmup_steps"):
            check(**knobs)


def test_a_run_that_would_mix_single_crops_is_refused(tmp_path: Path):
    write_streets(tmp_path / "t", "camera", 0, 4, (64, 128), with_labels=False)
    knobs = {"train.batch_size": 6, "compute.num_workers": 2, "train.augment.class_mix": 0.5}
    config = override(Config(), {"compute.device": "cpu"} | knobs)
    arguments = (SOURCE_MODEL, tmp_path / "t" / "images", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"3 at a time on each of 2 workers.* multiple of 4"):
        sfss_ray.adapt(*arguments, config=config, progress=str)
    assert not (tmp_path / "out").exists()


def test_the_best_student_needs_held_out_images():
    best = override(Config(), {"train.keep": "best"}).train
    check_keep(best, 1)
    check_keep(Config().train, 0)
    with pytest.raises(
        ConfigError, match=r"train.keep is 'best' but no target images are held out"
    ):
        check_keep(best, 0)


@pytest.mark.parametrize(
    ("knobs", "is_accepted"),
    [
        ({}, True),
        ({"mask_vote": "none"}, False),
        ({"mask_vote": "majority"}, False),
        ({"vote_weight": 0.0}, False),
        ({"mask_vote": "none", "rule_out_weight": 1.0}, True),
        ({"mask_vote": "none", "rule_out_weight": 1.0, "rule_out_by": "pixel"}, False),
        ({"mask_vote": "none", "neighbour_space": "learned"}, True),
        ({"mask_vote": "none", "neighbour_space": "learned", "metric_weight": 0.0}, False),
        ({"mask_vote": "none", "neighbour_weight": 0.0}, True),
    ],
)
def test_neighbours_whose_opinion_nothing_uses_are_refused(knobs, is_accepted):
    knobs = {"neighbour_weight": 1.0} | knobs
    config = override(Config(), {f"train.loss.{name}": value for name, value in knobs.items()})
    if is_accepted:
        check_neighbour_use(config)
        return
    with pytest.raises(ConfigError, match="no loss uses the opinion of neighbours: set mask_vote"):
        check_neighbour_use(config)
