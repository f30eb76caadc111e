"""Stage 3: a search over temperature, contrast weight and EMA momentum, on masks made before."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sfss_ray.config import Config, override
from sfss_ray.config.consistency import MASK_SCORES, require_held_out, score_name
from sfss_ray.errors import ConfigError, OutputError
from sfss_ray.runtime import cluster
from sfss_ray.runtime.progress import ProgressSink, print_line
from sfss_ray.runtime.resources import trials_demand
from sfss_ray.runtime.run_folder import write_json
from sfss_ray.storage.places import Place
from sfss_ray.train.progress_tail import RecordSink
from sfss_ray.train.training_inputs import Prepared
from sfss_ray.tune.trial import SearchPlan, Trial, best_trial
from sfss_ray.tune.tuner import run_trials

BEST_CONFIG_FILE = "best_config.json"


@dataclass(frozen=True)
class SearchResult:
    """All trials, and the best finished one that did not collapse."""

    trials: list[Trial]
    best: int
    """Index of the best trial."""
    score_name: str
    oracle: bool
    """True if target labels chose the best trial."""
    best_config: Place
    """JSON file with the best trial's values by dotted name."""


def run_search(
    prepared: Prepared,
    folder: Place,
    config: Config,
    progress: ProgressSink = print_line,
    on_record: RecordSink | None = None,
) -> SearchResult:
    """Search in a claimed folder, resuming an interrupted search.

    Args:
        prepared: Checked inputs with their masks.
        folder: The run's folder. Trials and `best_config.json` are written to it.
        config: The whole config, of which `tune`, `train`, `evaluation` and `compute` are used.
        progress: Called with each progress line.
        on_record: Called with the name of a trial and each new progress record.

    Raises:
        ConfigError: the score needs labels, held-out images or masks that are missing.
        ClusterError: the cluster is too small for the trials.
        TrainingError: no trial finished with a score.
    """
    score = score_name(config.tune, bool(prepared.labelled))
    require_held_out(score, len(prepared.held_out))
    _require_masks(score, prepared)
    prepared = prepared.placed(folder)
    trials = _load_or_run(prepared, folder / "trials", config, score, progress, on_record)
    best = best_trial(trials)
    best_config = folder / BEST_CONFIG_FILE
    write_json(best_config, trials[best].values)
    return SearchResult(trials, best, score, score == "val_miou", best_config)


def _load_or_run(
    prepared: Prepared,
    folder: Place,
    config: Config,
    score: str,
    progress: ProgressSink,
    on_record: RecordSink | None,
) -> list[Trial]:
    """Return the trials of a finished search, or train them."""
    results = folder / "results.json"
    if results.exists():
        return [Trial.from_json(values, folder) for values in json.loads(results.read_text())]
    # Resolved once: on a node with GPUs, a trial that reserved none would choose the GPU.
    compute = config.compute
    device = cluster.resolve_device(compute)
    plan = SearchPlan(prepared, folder, override(config, {"compute.device": device}), score)
    with cluster.connected(compute) as resources:
        demand = trials_demand(compute, device, compute.concurrent_trials)
        resources = cluster.wait_for_nodes(compute, demand, resources, progress)
        trials = run_trials(plan, resources, progress, on_record)
    _require_written(trials)
    # If no trial finished, the cause may be temporary: the next run trains them again.
    if any(trial.status == "finished" for trial in trials):
        write_json(results, [trial.as_json() for trial in trials])
    return trials


def _require_written(trials: list[Trial]) -> None:
    """Raise OutputError if a trial failed because its files could not be written.

    That says nothing about its settings, so it must not count as one of the search's trials.
    """
    unwritten = [t for t in trials if t.status == "failed" and OutputError.__name__ in t.error]
    if unwritten:
        reason = unwritten[0].error.partition(f"{OutputError.__name__}: ")[2] or unwritten[0].error
        raise OutputError(f"{len(unwritten)} of {len(trials)} trials stopped: {reason}")


def _require_masks(score: str, prepared: Prepared) -> None:
    """Raise ConfigError if the score reads masks and the held-out images have none.

    All trials would have the same score.
    """
    if score not in MASK_SCORES:
        return
    if not prepared.store.count(image.image_id for image in prepared.held_out):
        raise ConfigError(
            f"score is {score!r} but the {len(prepared.held_out)} held-out images have no masks: raise"
            " evaluation.held_out_share, make more masks (lower masks.pred_iou_thresh or"
            " masks.stability_score_thresh), or choose another tune.score"
        )
