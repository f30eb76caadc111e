"""Running the trials of a search on Ray Tune.

A trial of one worker trains inside the trial itself. A trial of several workers is a driver that holds
almost no CPU and starts Ray Train, so that trials cannot starve their own workers.
"""

from __future__ import annotations

import warnings
from typing import Any

from sfss_ray.config import Config
from sfss_ray.config.space import Dimension, parse_space
from sfss_ray.config.space_check import is_whole_number, planned_trials
from sfss_ray.runtime.progress import ProgressSink
from sfss_ray.runtime.resources import (
    TRIAL_DRIVER_CPUS,
    Resources,
    placement_options,
    process_bundle,
    training_demand,
    trials_demand,
)
from sfss_ray.storage.places import Place
from sfss_ray.train.progress_tail import RecordSink, following
from sfss_ray.train.trainer import ray_storage
from sfss_ray.tune.search_space import (
    Point,
    coordinate,
    coordinate_range,
    knob_values,
    start_point,
)
from sfss_ray.tune.trial import SearchPlan, Trial, grace_steps, progress_folder, trial_folder
from sfss_ray.tune.trial_score import GUARDED

_MAX_RESTARTS = 10


def run_trials(
    plan: SearchPlan,
    resources: Resources,
    progress: ProgressSink,
    on_record: RecordSink | None = None,
) -> list[Trial]:
    """Train all trials of a search, resuming an interrupted one.

    Args:
        plan: What the trials share.
        resources: Of the connected cluster.
        progress: Called with the trials' progress lines.
        on_record: Called with the name of a trial and each new progress record.

    Raises:
        ClusterError: the cluster is too small for the trials.
    """
    import optuna

    warnings.filterwarnings("ignore", module="optuna")
    # Not by `logging`: Optuna sets the level of its logger when it is first used.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    tuner = _build_tuner(plan, _concurrent_trials(plan.config, resources))
    with following(lambda: _progress_folders(plan), progress, on_record, score=plan.score):
        results = tuner.fit()
    return _collect(plan, results)


def _progress_folders(plan: SearchPlan) -> dict[str, Place]:
    """Return the progress folders of the trials that exist, by the trials' names."""
    trials = sorted(plan.folder.glob("trial-*"), key=lambda trial: trial.name)
    return {trial.name: progress_folder(trial, plan.config) for trial in trials}


def _trial(point: Point, plan: SearchPlan) -> None:
    """Train one trial. A search can only be restored while this function keeps its name."""
    from sfss_ray.tune.trial_training import train_trial

    train_trial(point, plan)


def _domain(dimension: Dimension) -> Any:
    """Return the distribution that Ray Tune samples a dimension's coordinate from."""
    import ray.tune

    if dimension.choices:
        return ray.tune.choice(list(dimension.choices))
    low, high = coordinate_range(dimension)
    if is_whole_number(dimension):  # the upper end of Tune's is not drawn
        draw = ray.tune.lograndint if dimension.scale == "log" else ray.tune.randint
        return draw(int(low), int(high) + 1)
    return (
        ray.tune.uniform(low, high)
        if dimension.scale == "linear"
        else ray.tune.loguniform(low, high)
    )


def _build_tuner(plan: SearchPlan, concurrent_trials: int) -> Any:
    """Return the tuner of a new search, or that of an interrupted one."""
    import ray.tune

    from sfss_ray.tune.distinct_search import DistinctSearch

    storage, name = ray_storage(plan.folder / "ray"), "search"
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(_trial, plan=plan), _trial_request(plan.config)
    )
    path, filesystem = f"{storage['storage_path']}/{name}", storage.get("storage_filesystem")
    if ray.tune.Tuner.can_restore(path, storage_filesystem=filesystem):
        return ray.tune.Tuner.restore(
            path,
            trainable,
            resume_unfinished=True,
            restart_errored=True,
            storage_filesystem=filesystem,
        )

    config = plan.config
    return ray.tune.Tuner(
        trainable,
        param_space={coordinate(d): _domain(d) for d in parse_space(config.tune.entries)},
        tune_config=ray.tune.TuneConfig(
            metric=GUARDED,
            mode="max",
            num_samples=planned_trials(config),
            max_concurrent_trials=concurrent_trials,
            search_alg=DistinctSearch(
                metric=GUARDED,
                mode="max",
                seed=config.seed,
                points_to_evaluate=[start_point(config)],
            ),
            scheduler=_scheduler(plan),
        ),
        run_config=ray.tune.RunConfig(
            name=name,
            **storage,
            failure_config=ray.tune.FailureConfig(max_failures=max_restarts(config)),
            verbose=1 if config.compute.ray_progress else 0,
        ),
    )


def max_restarts(config: Config) -> int:
    """Return how often Tune restarts a trial that failed.

    Trials of several workers are restarted by Ray Train instead.
    """
    if config.compute.workers.largest > 1:
        return 0
    # An unlimited number (-1) is limited here: a trial whose loss is NaN fails again each time.
    limit = config.compute.max_failures
    return limit if limit >= 0 else _MAX_RESTARTS


def _scheduler(plan: SearchPlan) -> Any:
    """Return ASHA, or a scheduler that stops no trial."""
    import ray.tune.schedulers

    from sfss_ray.tune.trial_training import WorkerTrialsScheduler

    config = plan.config
    if not config.tune.early_stopping:
        return ray.tune.schedulers.FIFOScheduler()
    options: dict[str, Any] = {
        "time_attr": "step",  # Tune's own count of reports restarts when a trial is resumed
        # ASHA stops every trial at max_t, also the best: no report gets that far.
        "max_t": config.train.num_steps + 1,
        "grace_period": grace_steps(config),
        "reduction_factor": config.tune.reduction_factor,
    }
    if config.compute.workers.largest > 1:
        return WorkerTrialsScheduler(plan.folder, config, **options)
    return ray.tune.schedulers.ASHAScheduler(**options)


def _trial_resources(config: Config) -> dict[str, float]:
    compute = config.compute
    if compute.workers.largest > 1:
        return {"CPU": TRIAL_DRIVER_CPUS}
    return process_bundle(training_demand(compute, compute.device), compute)


def _trial_request(config: Config) -> Any:
    """Return the resources of a trial in Ray Tune's form, with the labels of its node."""
    import ray.tune

    selector = placement_options(config.compute, 0).get("label_selector")
    # A driver of workers may run anywhere; Ray Train places its workers.
    if selector is None or config.compute.workers.largest > 1:
        return _trial_resources(config)
    return ray.tune.PlacementGroupFactory(
        [_trial_resources(config)], bundle_label_selector=[selector]
    )


def _concurrent_trials(config: Config, resources: Resources) -> int:
    """Return the number of trials at a time: the configured one, else as many as fit.

    Raises:
        ClusterError: the cluster cannot hold one trial's workers, or the configured number of trials.
    """
    compute = config.compute
    trials_demand(compute, compute.device, compute.concurrent_trials).require(resources)
    one_trial = trials_demand(compute, compute.device)
    return compute.concurrent_trials or one_trial.fitting(resources) // one_trial.count


def _collect(plan: SearchPlan, results: Any) -> list[Trial]:
    """Turn Tune's results into trials."""
    trials = []
    for number, result in enumerate(results, start=1):
        values = knob_values(result.config)
        metrics = {k: v for k, v in (result.metrics or {}).items() if isinstance(v, (int, float))}
        complete = metrics.get("step", 0) >= plan.config.train.num_steps
        status = "failed" if result.error else ("finished" if complete else "stopped early")
        error = str(result.error).strip().splitlines()[-1] if result.error else ""
        folder = trial_folder(plan.folder, values)
        trials.append(Trial(f"trial {number}", folder, values, metrics, status, error))
    return trials
