"""The grammar of search spaces."""

import json

import pytest

from sfss_ray.config import Config, load_config, override, to_yaml
from sfss_ray.config.space import (
    DEFAULT_SPACE,
    Dimension,
    default_space,
    parse_space,
    short_names,
)
from sfss_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("entry", "dimension"),
    [
        ("train.loss.vote_weight=0.2..1", Dimension("train.loss.vote_weight", "linear", 0.2, 1.0)),
        (
            " train.optim.learning_rate=log:1e-5..1e-3",
            Dimension("train.optim.learning_rate", "log", 1e-5, 1e-3),
        ),
        (
            "train.ema_momentum=gap:0.99..0.9999",
            Dimension("train.ema_momentum", "gap", 0.99, 0.9999),
        ),
        (
            "train.batch_norm=auto, frozen",
            Dimension("train.batch_norm", "choices", choices=("auto", "frozen")),
        ),
        (
            "train.loss.vote_weight=0.2,0.5,1",
            Dimension("train.loss.vote_weight", "choices", choices=(0.2, 0.5, 1)),
        ),
        (
            "train.augment.flip=true,false",
            Dimension("train.augment.flip", "choices", choices=(True, False)),
        ),
    ],
)
def test_entries_are_read(entry, dimension):
    assert parse_space([entry]) == (dimension,)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("train.loss.vote_weight", "allowed is NAME=LOW..HIGH"),
        ("train.loss.vote_weight=", "allowed is NAME=LOW..HIGH"),
        ("train.loss.vote_weight=low..high", "LOW and HIGH are numbers"),
        ("train.loss.vote_weight=1..0.2", "LOW is below HIGH"),
        ("train.loss.vote_weight=nan..1", "LOW is below HIGH"),
        ("train.loss.temperature=log:0..1", "above 0"),
        ("train.ema_momentum=gap:0.9..1", r"lies in \[0, 1\)"),
        ("train.batch_norm=auto", "two or more different values"),
        ("train.batch_norm=auto,auto", "two or more different values"),
        ("train.batch_norm=log:auto,frozen", "two or more different values"),
        ("masks.points_per_side=8..32", "settings of the training"),
        ("train.num_steps=100..200", "settings of the training"),
        ("compute.num_workers=1,2", "settings of the training"),
    ],
)
def test_other_entries_are_refused_in_one_line(entry, message):
    with pytest.raises(ConfigError, match=f"tune.space has .*{message}") as refused:
        override(Config(), {"tune.space": [entry]})
    assert "\n" not in str(refused.value)


def test_an_empty_space_and_a_setting_named_twice_are_refused():
    with pytest.raises(ConfigError, match=r"tune\.space is empty"):
        override(Config(), {"tune.space": []})
    with pytest.raises(ConfigError, match=r"'train\.batch_norm' twice"):
        override(Config(), {"tune.space": ["train.batch_norm=auto,frozen"] * 2})
    with pytest.raises(ConfigError, match="allowed is a tuple, one or more entries"):
        override(Config(), {"tune.space": "train.batch_norm=auto,frozen"})


FILES = {
    "space.yaml": "tune:\n  space:\n    train.loss.vote_weight: 0.2..1\n"
    "    train.batch_norm: [auto, frozen]\n    train.augment.flip: [true, false]\n",
    "dotted.yaml": "tune.space.train.loss.vote_weight: 0.2..1\n"
    "tune.space.train.batch_norm: [auto, frozen]\ntune.space.train.augment.flip: [true, false]\n",
    "mapping.json": json.dumps(
        {
            "tune": {
                "space": {
                    "train.loss.vote_weight": "0.2..1",
                    "train.batch_norm": ["auto", "frozen"],
                    "train.augment.flip": [True, False],
                }
            }
        }
    ),
    "list.json": json.dumps(
        {
            "tune.space": [
                "train.loss.vote_weight=0.2..1",
                "train.batch_norm=auto,frozen",
                "train.augment.flip=true,false",
            ]
        }
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_config_files_name_a_space_as_a_mapping_or_a_list(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    config = load_config(tmp_path / name)
    assert config.tune.space == (
        "train.loss.vote_weight=0.2..1",
        "train.batch_norm=auto,frozen",
        "train.augment.flip=true,false",
    )
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config


def test_the_default_space_is_the_three_of_the_contrast():
    assert [d.name for d in parse_space(DEFAULT_SPACE)] == [
        "train.loss.temperature",
        "train.loss.contrast_weight",
        "train.ema_momentum",
    ]


@pytest.mark.parametrize(
    ("ema_momentum", "low", "high"),
    [
        (0.999, 0.99, 0.9999),
        (0.99, 0.9, 0.999),
        (0.5, 0.0, 0.95),
        (0.0, 0.0, 0.9),
        (1.0, 0.99, 0.9999),
    ],
)
def test_the_momentum_is_searched_around_that_of_the_config(ema_momentum, low, high):
    (*_, momentum) = parse_space(default_space(ema_momentum, asks_neighbours=False))
    assert momentum == Dimension("train.ema_momentum", "gap", low, high)


def test_the_weight_of_neighbours_is_searched_where_masks_ask_them():
    alone = default_space(0.999, asks_neighbours=False)
    assert alone == DEFAULT_SPACE
    (*others, weight) = default_space(0.999, asks_neighbours=True)
    assert tuple(others) == alone
    assert parse_space([weight]) == (Dimension("train.loss.neighbour_weight", "linear", 0.0, 4.0),)


def test_short_names_keep_what_tells_them_apart():
    assert short_names(["train.loss.temperature", "train.ema_momentum"]) == [
        "temperature",
        "ema_momentum",
    ]
    assert short_names(["train.optim.a", "train.loss.a"]) == ["optim.a", "loss.a"]
    assert short_names([]) == []
