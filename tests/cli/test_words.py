"""Words of a command line: options are taken out, and unknown ones refused with advice."""

from __future__ import annotations

import pytest

from sfss_ray import cli
from sfss_ray.cli.words import (
    EMPTY,
    mark_empty_paths,
    option_names,
    refuse_unknown_options,
    split_lists,
    take_flag,
    take_value,
)
from sfss_ray.errors import ConfigError


def test_options_are_found_among_words():
    words = ["a", "--seed", "1", "--train.num_steps=3", "-h", "--", "-1"]
    assert option_names(words) == ["--seed", "--train.num-steps"]


def test_a_flag_is_taken_out():
    assert take_flag(["a", "--dry_run", "b"], "--dry-run") == (True, ["a", "b"])
    assert take_flag(["a", "b"], "--dry-run") == (False, ["a", "b"])
    assert take_flag(["-h"], "--help", "-h") == (True, [])


@pytest.mark.parametrize(
    ("words", "value", "rest"),
    [
        (["a", "--preset", "cnn", "b"], "cnn", ["a", "b"]),
        (["--preset=cnn", "b"], "cnn", ["b"]),
        (["--preset", "cnn", "--preset", "transformer"], "transformer", []),
        (["a", "b"], None, ["a", "b"]),
    ],
)
def test_a_value_is_taken_out(words, value, rest):
    assert take_value(words, "--preset") == (value, rest)


@pytest.mark.parametrize("words", [["--preset"], ["--preset="], ["--preset", "--seed", "1"]])
def test_a_missing_value_is_refused(words):
    with pytest.raises(ConfigError, match="--preset has no value: give one"):
        take_value(words, "--preset")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a,b", "--formats", "coco,cvat"], ["a,b", "--formats", "coco", "cvat"]),
        (["--formats=coco,cvat", "--card", "a,b"], ["--formats", "coco", "cvat", "--card", "a,b"]),
        (["--formats", "coco", "cvat"], ["--formats", "coco", "cvat"]),
        (["--evaluation.mode", "a,b"], ["--evaluation.mode", "a,b"]),
    ],
)
def test_names_in_a_list_may_be_joined_by_commas(words, expected):
    assert split_lists(cli.VERBS["predict"], words) == expected


def test_trackers_are_a_list_of_names_too():
    words = split_lists(cli.VERBS["adapt"], ["--trackers", "mlflow,wandb"])
    assert words == ["--trackers", "mlflow", "wandb"]


def refusal(verb: str, *words: str) -> str:
    with pytest.raises(ConfigError) as refused:
        refuse_unknown_options(cli.VERBS[verb], words, f"sfss-ray {verb}")
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("verb", "word", "users"),
    [
        ("predict", "--train.num-steps", "train, adapt, tune"),
        ("predict", "--train.num_steps=3", "train, adapt, tune"),
        ("adapt", "--tune.num-trials", "tune"),
        ("adapt", "--pretrain.augment.no-flip", "pretrain"),
        ("data check", "--sam-checkpoint", "masks, adapt, tune"),
        ("export", "--preset", "pretrain, train, adapt, tune, verify, evaluate, predict"),
        ("train", "--dry-run", "adapt, tune"),
    ],
)
def test_options_of_other_verbs_name_the_verbs_that_use_them(verb, word, users):
    name = word.partition("=")[0].replace("_", "-")
    expected = f"{name} is not an option of sfss-ray {verb}: it is used by {users}"
    assert refusal(verb, word) == expected


@pytest.mark.parametrize(
    ("verb", "former", "current"),
    [
        ("adapt", "--config-file", "--config"),
        ("adapt", "--output", "--output-dir"),
        ("evaluate", "--output", "--output-dir"),
        ("masks inspect", "--output", "--output-file"),
        ("export", "--output", "--output-file"),
        ("tune", "--protocol", "--preset"),
        ("tune", "--num-trials", "--tune.num-trials"),
        ("tune", "--num-steps", "--train.num-steps"),
        ("pretrain", "--num-steps", "--pretrain.num-steps"),
        ("tune", "--num-workers", "--compute.num-workers"),
        ("tune", "--address", "--compute.address"),
    ],
)
def test_former_names_are_refused_with_the_new_one(verb, former, current):
    assert refusal(verb, former, "x") == f"{former} has a new name: use {current}"


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("--no-such-option", "sfss-ray train --help-all lists its options"),
        ("--traget-images", "did you mean --target-images"),
        ("--train.num-step", "did you mean --train.num-steps"),
        ("--learning-rate", "did you mean --train.optim.learning-rate?"),
    ],
)
def test_misspelt_options_name_similar_ones(word, advice):
    line = refusal("train", word)
    assert line.startswith(f"unknown option {word} of sfss-ray train: ")
    assert advice in line


def test_research_knobs_and_underscores_are_known():
    words = ["--train.loss.label_space", "entropy", "--train.augment.no-flip", "--seed=3"]
    refuse_unknown_options(cli.VERBS["train"], words, "sfss-ray train")


@pytest.mark.parametrize(
    ("verb", "words", "name"),
    [
        ("verify", ["--source-model", "a.pt", "--images", ""], "--images"),
        ("verify", ["--images="], "--images"),
        ("evaluate", ["--output_dir", "", "--model", "a.pt"], "--output-dir"),
        ("predict", ["a.pt", "b", "--card", ""], "--card"),
        ("adapt", ["--sam-checkpoint="], "--sam-checkpoint"),
    ],
)
def test_empty_paths_are_refused(verb, words, name):
    """An unset variable would stand for the current folder."""
    with pytest.raises(
        ConfigError, match=rf"^{name} is empty: give a path \(an unset variable\?\)"
    ):
        mark_empty_paths(cli.VERBS[verb], words)


@pytest.mark.parametrize(
    ("verb", "words", "marked"),
    [
        ("predict", ["a.pt", "", "out"], ["a.pt", EMPTY, "out"]),
        ("predict", ["", "--seed", "1", ""], [EMPTY, "--seed", "1", EMPTY]),
        ("masks", ["--strict", ""], ["--strict", EMPTY]),
        ("adapt", ["--labels-classes", "", "--labels-classes="], None),
        ("adapt", ["--target-images", ".", "--output-dir", "a=", "--strict"], None),
    ],
)
def test_empty_words_without_a_name_are_marked(verb, words, marked):
    assert mark_empty_paths(cli.VERBS[verb], words) == (marked or words)
