"""A search with its trials trained in this process instead of on Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest
from train_samples import adaptation_task, sharp_source, small_config, write_dataset

from sfss_ray.config import Config, TuneConfig, override
from sfss_ray.config.consistency import MASK_SCORES, SCORES, require_held_out, score_name
from sfss_ray.errors import ConfigError, TrainingError
from sfss_ray.models.source import open_source
from sfss_ray.runtime import cluster
from sfss_ray.runtime.resources import Resources
from sfss_ray.train.training_inputs import Prepared
from sfss_ray.tune import search
from sfss_ray.tune.search import SearchResult, run_search
from sfss_ray.tune.trial import Trial

RESOURCES = Resources(2.0, 0, ((2.0, 0.0),))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Prepared:
    root = write_dataset(tmp_path_factory.mktemp("search"))
    source = sharp_source(root / "source.pt")
    images = adaptation_task(root, source, small_config()).images
    return Prepared(open_source(source), images[:4], images[4:], (), str(root / "masks"))


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.setattr(cluster, "connected", lambda compute: contextlib.nullcontext(RESOURCES))
    monkeypatch.setattr(cluster, "resolve_device", lambda compute: "cpu")


def use_trials(monkeypatch, *trials: Trial) -> list:
    """Let the search's trials be these; the list has the plan of each search that runs them."""
    plans: list = []

    def run_trials(plan, resources, *_):
        assert resources is RESOURCES
        plans.append(plan)
        return list(trials)

    monkeypatch.setattr(search, "run_trials", run_trials)
    return plans


def trial(score: float, status: str = "finished") -> Trial:
    values = {"train.loss.temperature": score / 10}
    return Trial("trial", Path("folder"), values, {"score": score}, status, "out of memory")


def run(prepared: Prepared, folder: Path, **tune: str) -> SearchResult:
    config = override(small_config(), {f"tune.{name}": value for name, value in tune.items()})
    return run_search(prepared, folder, config, str)


def test_the_best_trials_values_are_written(prepared, tmp_path, monkeypatch):
    plans = use_trials(monkeypatch, trial(1.0), trial(3.0), trial(9.0, "failed"))
    result = run(prepared, tmp_path)
    assert result.best == 1
    assert result.score_name == "anchored_information"
    assert not result.oracle
    assert result.best_config == tmp_path / "best_config.json"
    assert json.loads(result.best_config.read_text()) == {"train.loss.temperature": 0.3}
    (plan,) = plans
    assert plan.folder == tmp_path / "trials"
    assert plan.config.compute.device == "cpu"
    assert plan.score == result.score_name


def test_a_finished_search_is_not_run_again(prepared, tmp_path, monkeypatch):
    plans = use_trials(monkeypatch, trial(1.0), trial(3.0))
    first, again = run(prepared, tmp_path), run(prepared, tmp_path)
    assert len(plans) == 1
    assert again == first


def test_a_search_without_a_finished_trial_is_run_again(prepared, tmp_path, monkeypatch):
    plans = use_trials(monkeypatch, trial(1.0, "failed"))
    for _ in range(2):
        with pytest.raises(TrainingError, match="no trial of 1 finished: out of memory"):
            run(prepared, tmp_path)
    assert len(plans) == 2
    assert not (tmp_path / "best_config.json").exists()


def test_target_labels_make_it_an_oracle(prepared, tmp_path, monkeypatch):
    use_trials(monkeypatch, trial(1.0))
    labelled = dataclasses.replace(prepared, labelled=("a pair",))
    assert run(labelled, tmp_path).oracle
    assert not run(labelled, tmp_path / "other", score="entropy").oracle


def test_missing_masks_and_images_are_refused_before_trials_run(prepared, tmp_path, monkeypatch):
    plans = use_trials(monkeypatch, trial(1.0))
    bare = write_dataset(tmp_path / "bare", count=1, without_masks=(0,))
    images = adaptation_task(bare, tmp_path, small_config()).images
    no_masks = Prepared(prepared.source, images, images, (), str(bare / "masks"))
    for score in ("auto", *MASK_SCORES):
        with pytest.raises(ConfigError, match=r"_information' but the 1 held-out images have no"):
            run(no_masks, tmp_path / "run", score=score)
    with pytest.raises(ConfigError, match=r"raise\s+evaluation\.held_out_share above 0"):
        run(dataclasses.replace(prepared, held_out=()), tmp_path / "run", score="entropy")
    assert plans == []
    run(no_masks, tmp_path / "run", score="entropy")


def test_scores_are_resolved_and_refused_before_anything_runs():
    assert score_name(TuneConfig(), labelled=True) == "val_miou"
    assert score_name(TuneConfig(), labelled=False) == "anchored_information"
    assert score_name(TuneConfig(score="agreement"), labelled=True) == "agreement"
    with pytest.raises(ConfigError, match="no val_images and val_labels"):
        score_name(TuneConfig(score="val_miou"), labelled=False)
    require_held_out("val_miou", 0)
    with pytest.raises(ConfigError, match=r"raise\s+evaluation\.held_out_share above 0"):
        require_held_out("entropy", 0)


def test_every_score_can_be_chosen():
    for score in SCORES:
        assert score_name(TuneConfig(score=score), labelled=False) == score
    with pytest.raises(ConfigError, match="allowed"):
        TuneConfig(score="accuracy")  # pyright: ignore[reportArgumentType]


def test_the_default_config_can_be_searched(prepared, tmp_path, monkeypatch):
    use_trials(monkeypatch, trial(1.0))
    assert run_search(prepared, tmp_path, Config(), str).best == 0
