"""The training of one trial, inside Ray Tune."""

from __future__ import annotations

from typing import Any

import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from sfss_ray.config import Config, override
from sfss_ray.errors import TrainingError
from sfss_ray.runtime.devices import worker_device
from sfss_ray.runtime.progress import silent
from sfss_ray.runtime.run_folder import write_json
from sfss_ray.runtime.threads import use_threads
from sfss_ray.storage.files import write_text
from sfss_ray.storage.places import Place
from sfss_ray.train.adaptation import adapt_student
from sfss_ray.train.launch import STUDENT_FILE, save_network
from sfss_ray.train.run_state import STOP_FILE, LocalRun, load_state, read_progress
from sfss_ray.train.trainer import TrainingJob, fit
from sfss_ray.tune.search_space import Point, knob_values
from sfss_ray.tune.trial import SearchPlan, progress_folder, trial_folder


def train_trial(point: Point, plan: SearchPlan) -> None:
    """Train a student with the sampled hyperparameters and report its scores to Tune.

    A trial of one worker trains in this process. A trial of several starts Ray Train from here.
    """
    values = knob_values(point)
    # Trials are compared by their last evaluation, so that is what they keep.
    config = override(plan.config, values | {"train.keep": "last"})
    folder = trial_folder(plan.folder, values)
    write_json(folder / "values.json", values)
    if config.compute.workers.largest > 1:
        _train_on_workers(plan, config, folder)
        reported = False  # unknown: Ray Train reports from another process
    else:
        reported = _train_in_process(plan, config, folder)
    if not reported:
        # A trial saves its state before it reports. Killed in between, it resumes after its last step
        # and has nothing left to do, and Tune would never hear of its last evaluation.
        ray.tune.report(read_progress(progress_folder(folder, config))[-1])


def _train_in_process(plan: SearchPlan, config: Config, folder: Place) -> bool:
    """Train in this process. Return whether anything was reported."""
    use_threads(config.compute.cpus_per_worker)
    prepared, failure = plan.prepared, folder / "failure.txt"
    if failure.exists():  # the same values would fail again
        raise TrainingError(failure.read_text())
    reports: list[dict[str, Any]] = []

    def report(metrics: dict[str, Any]) -> None:
        reports.append(metrics)
        # Before the report, because Tune may stop the trial in it.
        if metrics["step"] == config.train.num_steps:
            save_network(load_state(folder), "student", prepared, config, folder / STUDENT_FILE)
        ray.tune.report(metrics)

    try:
        run = LocalRun(folder, worker_device(config.compute.device), report)
        adapt_student(prepared.task(config), run, plan.watch(config))
    except TrainingError as error:
        write_text(failure, str(error))
        raise
    return bool(reports)


def _train_on_workers(plan: SearchPlan, config: Config, folder: Place) -> None:
    """Train on Ray Train's workers, whose reports go to Tune."""
    prepared = plan.prepared
    job = TrainingJob(adapt_student, prepared.task(config), plan.watch(config))
    # Silent: the search's own process shows the progress files of all trials.
    state = fit(job, folder, config, silent, [TuneReportCallback()])
    save_network(state, "student", prepared, config, folder / STUDENT_FILE)


class WorkerTrialsScheduler(ASHAScheduler):
    """ASHA for trials that have workers of their own: it asks them to end instead of killing them.

    Tune stops a trial by killing its process. The workers' reservation is then removed by a cleaner of
    Ray Train, which needs the dashboard to notice the death. On a cluster without one the CPUs stay
    reserved, and the next trial waits for them forever. So the workers find a file at their next report,
    and their training returns by itself.
    """

    def __init__(self, folder: Place, config: Config, **options: Any):
        super().__init__(**options)
        # The whole plan would be stored with Tune's state again and again.
        self.folder, self.config = folder, config

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide as ASHA does, and leave a file for the workers of a trial that is to stop."""
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            folder = trial_folder(self.folder, knob_values(trial.config))
            write_text(progress_folder(folder, self.config) / STOP_FILE, "")
        return TrialScheduler.CONTINUE
