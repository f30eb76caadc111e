"""Search spaces against the settings that they name."""

import itertools

import pytest

from sfss_ray.config import Config, override, space_check
from sfss_ray.config.space import parse_space
from sfss_ray.config.space_check import check_space, is_whole_number, planned_trials
from sfss_ray.errors import ConfigError


def config_of(*space: str) -> Config:
    return override(Config(), {"tune.space": list(space)})


def test_the_default_space_and_numbers_flags_and_names_pass():
    check_space(Config())
    check_space(
        config_of(
            "train.loss.neighbour_weight=0..2",
            "train.pairs.negatives=log:64..1024",
            "train.batch_norm=auto,frozen,target",
            "train.loss.teacher_flip=true,false",
            "train.batch_size=2,4",
        ),
        masks_have_embeddings=True,
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("train.loss.no_such=0..1", "unknown setting 'train.loss.no_such': train.loss knows"),
        ("train.loss.vote_weight=0.5..3", "vote_weight is 3.0: allowed is"),
        ("train.loss.vote_weight=0.5,high", "vote_weight is 'high': allowed is a float"),
        ("train.batch_norm=0..1", "list its values instead, such as train.batch_norm=auto,"),
        ("train.loss.teacher_flip=0..1", "list its values instead, .*teacher_flip=true,false"),
        ("train.augment.scale_range=0.5..1", "which is a list"),
        ("train.pairs.negatives=0.5..8", "whole numbers"),
        ("train.pairs.negatives=64,many", "negatives is 'many': allowed is a int"),
        ("train.pairs.negatives=64,64.5", "negatives is 64.5: allowed is a int"),
        ("train.batch_norm=auto,batch", "batch_norm is 'batch': allowed is one of"),
    ],
)
def test_values_that_a_setting_refuses_are_refused(entry, message):
    with pytest.raises(ConfigError, match=message) as refused:
        check_space(config_of(entry))
    assert "\n" not in str(refused.value)


def test_values_that_do_not_fit_the_workers_are_refused():
    config = override(config_of("train.batch_size=4,6"), {"compute.num_workers": 4})
    with pytest.raises(ConfigError, match="batch_size is 6 but there are 4 workers"):
        check_space(config)


def test_every_whole_number_of_a_range_is_checked():
    config = override(config_of("train.batch_size=4..8"), {"compute.num_workers": 2})
    with pytest.raises(ConfigError, match="batch_size is 5 but there are 2 workers"):
        check_space(config)


def test_a_sample_of_a_long_range_is_checked(monkeypatch):
    checked: list[int] = []
    monkeypatch.setattr(
        space_check, "check_stage", lambda train, _: checked.append(train.pairs.negatives)
    )
    check_space(config_of("train.pairs.negatives=64..1063"))
    assert checked == list(range(64, 1064))
    checked.clear()
    check_space(config_of("train.pairs.negatives=64..100000000"))
    assert len(checked) == 1000
    assert checked[:500] == list(range(64, 564))
    assert (checked == sorted(set(checked)), checked[-1]) == (True, 100_000_000)
    assert max(b - a for a, b in itertools.pairwise(checked)) < 210_000


def test_a_fault_of_every_other_number_of_a_long_range_is_seen():
    config = override(config_of("train.batch_size=4..4000004"), {"compute.num_workers": 2})
    with pytest.raises(ConfigError, match="batch_size is 5 but there are 2 workers"):
        check_space(config)


def test_masks_that_a_choice_needs_are_checked():
    space = config_of("train.loss.neighbour_space=geometry,sam")
    config = override(space, {"train.loss.neighbour_weight": 1.0})
    with pytest.raises(ConfigError, match="the masks have no embeddings"):
        check_space(config, masks_have_embeddings=False)
    check_space(config, masks_have_embeddings=True)


@pytest.mark.parametrize(
    ("space", "trials"),
    [
        (["train.batch_norm=auto,frozen"], 2),
        (["train.batch_norm=auto,frozen,target", "train.batch_size=2..3"], 6),
        (["train.batch_norm=auto,frozen", "train.loss.vote_weight=0..1"], 8),
        (["train.pairs.negatives=64..128"], 8),
        (["train.pairs.negatives=1..1e300"], 8),
    ],
)
def test_a_small_space_has_fewer_trials(space, trials):
    assert planned_trials(config_of(*space)) == trials


def test_whole_numbers_are_told_from_others():
    whole, other = parse_space(["train.pairs.negatives=64..128", "train.loss.vote_weight=0..1"])
    assert is_whole_number(whole)
    assert not is_whole_number(other)
