"""Points of a search are distinct, also after an interruption."""

from __future__ import annotations

import json

import ray.tune
from ray.tune.search import Searcher

from sfss_ray.tune.distinct_search import DistinctSearch

SPACE = {
    "batch_norm": ray.tune.choice(["auto", "frozen", "target"]),
    "flip": ray.tune.choice([0, 1]),
}


def new_search(**options) -> DistinctSearch:
    return DistinctSearch(space=SPACE, metric="score", mode="max", seed=0, **options)


def suggested(search: DistinctSearch, names: list[str]) -> list[str]:
    return [json.dumps(search.suggest(name), sort_keys=True) for name in names]


def test_every_point_of_a_small_space_is_suggested_once():
    search = new_search(points_to_evaluate=[{"batch_norm": "target", "flip": 1}])
    points = suggested(search, list("abcdef"))
    assert json.loads(points[0]) == {"batch_norm": "target", "flip": 1}
    assert len(set(points)) == 6
    assert search.suggest("g") == Searcher.FINISHED


def test_results_are_told_to_optuna_and_repeats_are_not():
    search = new_search()
    for number, name in enumerate("abcdef"):
        search.suggest(name)
        search.on_trial_complete(name, {"score": float(number)})
    complete = [trial.value for trial in search._ot_study.trials if trial.value is not None]
    assert complete == [0, 1, 2, 3, 4, 5]


def test_a_restored_search_repeats_nothing(tmp_path):
    first = new_search()
    before = suggested(first, list("abc"))
    first.save(str(tmp_path / "search.pkl"))
    second = new_search()
    second.restore(str(tmp_path / "search.pkl"))
    assert len({*before, *suggested(second, list("def"))}) == 6
