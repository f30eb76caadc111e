"""A choice of BatchNorm statistics that is made once gives the training that `auto` would give."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from sfss_ray.config import override


@pytest.fixture
def pair(experiment, tmp_path):
    pair = experiment("domain_pairs").streets(tmp_path, 8)
    knobs = {"train.batch_norm": "auto", "train.num_steps": 2, "train.statistics_images": 6}
    return replace(pair, config=override(pair.config, knobs))


def test_the_choice_gives_the_weights_of_auto(experiment, pair, tmp_path):
    from sfss_ray.train.adaptation import AdaptationTask, adapt_student
    from sfss_ray.train.run_state import LocalRun, load_state

    masks = pair.masks("random")
    knobs = experiment("chosen_statistics").statistics_knobs(pair, pair.config)
    assert knobs["train.batch_norm"] == "target"
    assert knobs["train.statistics_share"] > 0
    states = []
    for name, config in (("auto", pair.config), ("once", override(pair.config, knobs))):
        task = AdaptationTask(pair.source_model, pair.images, masks, config)
        adapt_student(task, LocalRun(tmp_path / name))
        states.append(load_state(tmp_path / name)["student"])
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_the_choice_is_stored_and_made_again_for_other_images(experiment, pair, monkeypatch):
    module = experiment("chosen_statistics")
    made = []

    def choose_share(chosen_pair, config):
        made.append(len(chosen_pair.images))
        return 0.35

    monkeypatch.setattr(module, "choose_share", choose_share)
    for _ in range(2):
        knobs = module.statistics_knobs(pair, pair.config)
        assert knobs == {"train.batch_norm": "target", "train.statistics_share": 0.35}
    assert made == [8]
    module.statistics_knobs(replace(pair, images=pair.images[:5]), pair.config)
    assert made == [8, 5]
    assert json.loads((pair.folder / "statistics_share.json").read_text())["share"] == 0.35


def test_other_modes_need_no_choice(experiment, pair):
    module = experiment("chosen_statistics")
    frozen = override(pair.config, {"train.batch_norm": "frozen"})
    assert module.statistics_knobs(pair, frozen) == {}
