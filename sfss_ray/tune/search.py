"""Stage 3, the door: many students on Ray Tune -> the best temperature, weight and momentum.

Temperature and contrast weight are coupled, so the three knobs are searched jointly (Optuna's TPE).
Masks are made once before. A trial of one worker trains inside the trial itself; a trial of several
starts Ray Train from a driver that holds almost no CPU, so that trials cannot starve their workers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfss_ray.config import Config, override
from sfss_ray.config.consistency import require_held_out, score_name
from sfss_ray.errors import ConfigError, TrainingError
from sfss_ray.runtime import cluster
from sfss_ray.runtime.progress import ProgressSink, print_line
from sfss_ray.runtime.run_folder import write_json
from sfss_ray.runtime.threads import use_threads
from sfss_ray.storage.files import write_text
from sfss_ray.train.launch import save_student
from sfss_ray.train.progress_tail import RecordSink, following
from sfss_ray.train.trainer import fit
from sfss_ray.train.training_inputs import Prepared
from sfss_ray.tune.trial_score import GUARDED, TrialWatch

TEMPERATURE = "train.loss.temperature"
CONTRAST_WEIGHT = "train.loss.contrast_weight"
EMA_MOMENTUM = "train.ema_momentum"
EMA_GAP = "ema_gap"  # searched as 1 - momentum, which is what spans orders of magnitude
_MOST_RESTARTS = 10
BEST_CONFIG_FILE = "best_config.json"


@dataclass(frozen=True)
class Trial:
    """One trained student."""

    name: str
    folder: Path
    values: dict[str, float]
    """The three knobs by dotted name."""
    metrics: dict[str, Any]
    """Of the last step that was reported."""
    status: str
    """finished, stopped early, or failed."""
    error: str = ""

    @property
    def score(self) -> float:
        """What trials are compared by, the higher the better; -inf for a failed trial or no score."""
        score = self.metrics.get("score", -math.inf)
        return score if self.status != "failed" and math.isfinite(score) else -math.inf

    @property
    def collapsed(self) -> bool:
        """Whether its student lost many of the classes that the source model predicts."""
        return bool(self.metrics.get("collapsed", 0))


@dataclass(frozen=True)
class SearchResult:
    """All trials, and the best finished one that did not collapse."""

    trials: list[Trial]
    best: int
    score_name: str
    oracle: bool
    """True when target labels chose the best trial."""
    best_config: Path


def knob_values(sampled: dict[str, float]) -> dict[str, float]:
    """A point of the search space as config values."""
    return {
        TEMPERATURE: sampled[TEMPERATURE],
        CONTRAST_WEIGHT: sampled[CONTRAST_WEIGHT],
        EMA_MOMENTUM: 1.0 - sampled[EMA_GAP],
    }


def trial_folder(root: Path, values: dict[str, float]) -> Path:
    """Where a trial keeps its state: the same point of the space goes on from its checkpoint."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
    return root / f"trial-{digest}"


def run_search(
    prepared: Prepared,
    folder: Path,
    config: Config,
    progress: ProgressSink = print_line,
    on_record: RecordSink | None = None,
) -> SearchResult:
    """Search in a claimed folder; goes on with a search that was interrupted there."""
    score = score_name(config.tune, bool(prepared.labelled))
    require_held_out(score, len(prepared.held_out))
    _require_masks(score, prepared)
    prepared = prepared.placed(folder)
    folder = folder / "trials"
    # Decided once: on a node with GPUs a trial that reserved none would choose anew.
    device = cluster.resolve_device(config.compute)
    plan = _Plan(prepared, folder, override(config, {"compute.device": device}), score)
    results = folder / "results.json"
    if results.exists():
        trials = [_from_json(item) for item in json.loads(results.read_text())]
    else:
        with cluster.connected(config.compute) as resources:
            trials = _run_trials(plan, resources, progress, on_record)
        # Where none finished the cause may pass: the next run starts the trials again.
        if any(trial.status == "finished" for trial in trials):
            write_json(results, [_as_json(trial) for trial in trials])
    best = best_trial(trials)
    best_config = folder.parent / BEST_CONFIG_FILE
    write_json(best_config, trials[best].values)
    return SearchResult(trials, best, score, score == "val_miou", best_config)


def _require_masks(score: str, prepared: Prepared) -> None:
    """ConfigError when a score of masks has none to look at: all trials would be worth the same."""
    if "mask_information" not in score:
        return
    if not prepared.store.count(image.image_id for image in prepared.held_out):
        raise ConfigError(
            f"score is {score!r} but the {len(prepared.held_out)} held-out images have no masks: raise"
            " evaluation.held_out_share, make more masks (lower masks.pred_iou_thresh or"
            " masks.stability_score_thresh), or choose another tune.score"
        )


@dataclass(frozen=True)
class _Plan:
    """What every trial is given."""

    prepared: Prepared
    folder: Path
    config: Config
    score: str

    def watch(self, config: Config) -> TrialWatch:
        """What looks at a trial's student."""
        prepared = self.prepared
        return TrialWatch(prepared.examination(config), self.score, prepared.source, self.folder)


def _as_json(trial: Trial) -> dict[str, Any]:
    return vars(trial) | {"folder": str(trial.folder)}


def _from_json(item: dict[str, Any]) -> Trial:
    known: dict[str, Any] = item | {"folder": Path(item["folder"])}
    return Trial(**known)


def best_trial(trials: list[Trial]) -> int:
    """The finished trial with the highest score; one that collapsed never wins.

    Raises:
        TrainingError: no trial finished, or all that did collapsed or have no score.
    """
    finished = [i for i, t in enumerate(trials) if t.status == "finished"]
    if not finished:
        reasons = sorted({trial.error for trial in trials if trial.error}) or ["none finished"]
        raise TrainingError(f"no trial of {len(trials)} finished: {reasons[0]}")
    sound = [i for i in finished if not trials[i].collapsed]
    if not sound:
        raise TrainingError(
            f"all {len(finished)} finished trials collapsed: their students predict far fewer classes"
            " than the source model. Lower train.optim.learning_rate or the contrast_weight_range,"
            " and search in a new folder"
        )
    best = max(sound, key=lambda i: trials[i].score)
    if not math.isfinite(trials[best].score):
        raise TrainingError(
            f"none of {len(sound)} finished trials has a score, so that none can be chosen: the held-out"
            " images have no masks, or a network returns NaN. Look at the masks with `sfss-ray masks"
            " inspect`, hold out more images (evaluation.held_out_share), or choose another tune.score"
        )
    return best


def _run_trials(
    plan: _Plan,
    resources: cluster.Resources,
    progress: ProgressSink,
    on_record: RecordSink | None,
) -> list[Trial]:
    import ray.tune
    from ray.tune.search.optuna import OptunaSearch

    warnings.filterwarnings("ignore", module="optuna")
    logging.getLogger("optuna").setLevel(logging.ERROR)
    tune = plan.config.tune
    space = {
        TEMPERATURE: ray.tune.loguniform(*tune.temperature_range),
        CONTRAST_WEIGHT: ray.tune.loguniform(*tune.contrast_weight_range),
        EMA_GAP: ray.tune.loguniform(*tune.ema_gap_range),
    }
    limit = _concurrency(plan.config, resources)
    tuner = _tuner(plan, space, OptunaSearch, limit)
    with following(lambda: _progress_folders(plan), progress, on_record=on_record):
        grid = tuner.fit()
    return _collect(plan, grid)


def _progress_folders(plan: _Plan) -> dict[str, Path]:
    """Where trials log their steps, by their names."""
    return {f.name: _log_folder(f, plan.config) for f in sorted(plan.folder.glob("trial-*"))}


def _log_folder(trial: Path, config: Config) -> Path:
    """Ray Train's workers log in a folder below the trial's."""
    return trial / "train" if config.compute.num_workers > 1 else trial


def _tuner(plan: _Plan, space: dict[str, Any], searcher: Any, limit: int):
    import ray.tune

    storage, name = plan.folder / "ray", "search"
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(_trial, plan=plan), _trial_resources(plan.config)
    )
    path = str(storage / name)
    if ray.tune.Tuner.can_restore(path):
        return ray.tune.Tuner.restore(path, trainable, resume_unfinished=True, restart_errored=True)
    tune = plan.config.tune
    search = searcher(
        metric=GUARDED, mode="max", seed=plan.config.seed, points_to_evaluate=[_start(plan.config)]
    )
    return ray.tune.Tuner(
        trainable,
        param_space=space,
        tune_config=ray.tune.TuneConfig(
            metric=GUARDED,
            mode="max",
            num_samples=tune.num_trials,
            max_concurrent_trials=limit,
            search_alg=search,
            scheduler=_scheduler(plan.config),
        ),
        run_config=ray.tune.RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=ray.tune.FailureConfig(max_failures=_restarts(plan.config)),
            verbose=0,
        ),
    )


def _restarts(config: Config) -> int:
    """How often Tune starts a trial again that died; Ray Train counts for itself."""
    if config.compute.num_workers > 1:
        return 0
    # "Without end" (-1) has one here: a trial whose loss is NaN fails again each time.
    limit = config.compute.max_failures
    return limit if limit >= 0 else _MOST_RESTARTS


def _start(config: Config) -> dict[str, float]:
    """The config's own values, moved into the ranges that are searched."""
    tune, train = config.tune, config.train

    def inside(value: float, between: tuple[float, float]) -> float:
        return min(max(value, between[0]), between[1])

    return {
        TEMPERATURE: inside(train.loss.temperature, tune.temperature_range),
        CONTRAST_WEIGHT: inside(train.loss.contrast_weight, tune.contrast_weight_range),
        EMA_GAP: inside(1.0 - train.ema_momentum, tune.ema_gap_range),
    }


def looks(config: Config) -> int:
    """Reports a trial makes in all."""
    return math.ceil(config.train.num_steps / config.train.evaluate_every)


def grace_steps(config: Config) -> int:
    """Step from which ASHA may stop a trial: the first look after the contrast's full ramp."""
    every = config.train.evaluate_every
    ramp_end = config.train.loss.ramp[1] * config.train.num_steps
    return min(config.train.num_steps, (math.floor(ramp_end / every) + 1) * every)


def _scheduler(config: Config):
    import ray.tune.schedulers

    # A trial of several workers that Tune stops leaves its workers' CPUs reserved, and the next trial
    # would wait for them for ever: such trials run to their end.
    if not config.tune.early_stopping or config.compute.num_workers > 1:
        return ray.tune.schedulers.FIFOScheduler()
    return ray.tune.schedulers.ASHAScheduler(
        time_attr="step",  # Tune's own count of reports begins again where a trial is resumed
        # ASHA stops every trial at max_t, the best one too: no report gets that far.
        max_t=config.train.num_steps + 1,
        grace_period=grace_steps(config),
        reduction_factor=config.tune.reduction_factor,
    )


def _trial_resources(config: Config) -> dict[str, float]:
    compute = config.compute
    if compute.num_workers > 1:
        return {"CPU": cluster.TRIAL_DRIVER_CPUS}
    return {"CPU": compute.cpus_per_worker} | ({"GPU": 1.0} if compute.device == "cuda" else {})


def _concurrency(config: Config, resources: cluster.Resources) -> int:
    """Trials at the same time: as many as are asked for, else as many as fit.

    Raises:
        ClusterError: the cluster cannot hold one trial's workers, or not as many trials as asked for.
    """
    compute = config.compute
    cluster.trials_demand(compute, compute.device, compute.concurrent_trials).require(resources)
    one = cluster.trials_demand(compute, compute.device)
    return compute.concurrent_trials or one.fitting(resources) // one.number


def _trial(sampled: dict[str, float], plan: _Plan) -> None:
    """What a Tune trial runs: train a student with the sampled knobs, report its score."""
    import ray.tune

    values = knob_values(sampled)
    config = override(plan.config, values)
    folder = trial_folder(plan.folder, values)
    write_json(folder / "values.json", values)
    if config.compute.num_workers > 1:
        _train_distributed(plan, config, folder)
        return

    from sfss_ray.train.adaptation import adapt_student
    from sfss_ray.train.run_state import LocalRun, load_state

    use_threads(config.compute.cpus_per_worker)
    prepared, failure = plan.prepared, folder / "failure.txt"
    if failure.exists():  # of the same knobs, so that starting again would end as it did
        raise TrainingError(failure.read_text())
    reports: list[dict[str, Any]] = []

    def report(metrics: dict[str, Any]) -> None:
        reports.append(metrics)
        if metrics["step"] == config.train.num_steps:  # after a report Tune may stop the trial
            save_student(load_state(folder), prepared, config, folder / "student.pt")
        ray.tune.report(metrics)

    try:
        run = LocalRun(folder, config.compute.device, report)
        adapt_student(prepared.task(config), run, plan.watch(config))
    except TrainingError as error:
        write_text(failure, str(error))
        raise
    if not reports:
        report(_the_end(folder))


def _train_distributed(plan: _Plan, config: Config, folder: Path) -> None:
    import ray.tune
    from ray.tune.integration.ray_train import TuneReportCallback

    from sfss_ray.train.adaptation import adapt_student

    reports: list[dict[str, Any]] = []

    class Report(TuneReportCallback):
        def after_report(self, run_context, metrics, checkpoint):
            reports.extend(metrics)
            super().after_report(run_context, metrics, checkpoint)

    prepared, watch = plan.prepared, plan.watch(config)
    state = fit(adapt_student, prepared.task(config), watch, folder, config, _silent, [Report()])
    save_student(state, prepared, config, folder / "student.pt")
    if not reports:
        ray.tune.report(_the_end(_log_folder(folder, config)))


def _the_end(log: Path) -> dict[str, Any]:
    """What a trial that had no step to take tells Tune: its last look.

    A trial saves its state before it reports. Killed in between, it goes on from its last step and
    takes no further one; Tune would judge it by what it knew before, or by nothing.
    """
    from sfss_ray.train.run_state import read_progress

    return read_progress(log)[-1]


def _silent(text: str) -> None:
    """Trials are followed by the driver through their progress files."""


def _collect(plan: _Plan, grid: Any) -> list[Trial]:
    trials = []
    for number, result in enumerate(grid, start=1):
        values = knob_values(result.config)
        metrics = {k: v for k, v in (result.metrics or {}).items() if isinstance(v, (int, float))}
        last = metrics.get("step", 0) >= plan.config.train.num_steps
        status = "failed" if result.error else ("finished" if last else "stopped early")
        error = str(result.error).strip().splitlines()[-1] if result.error else ""
        folder = trial_folder(plan.folder, values)
        trials.append(Trial(f"trial {number}", folder, values, metrics, status, error))
    return trials
