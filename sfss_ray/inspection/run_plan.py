"""`plan`: inputs found and missing, and what each stage of a run costs, before anything runs."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sfss_ray.config import Config
from sfss_ray.errors import SfssError
from sfss_ray.inputs.check import Request, Survey, split, survey
from sfss_ray.inspection.plan_result import Plan, Stage
from sfss_ray.masks.regions import SamType
from sfss_ray.masks.resume import images_to_do
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import SourceLike
from sfss_ray.runtime import cluster
from sfss_ray.runtime.progress import ProgressSink, print_line

_NETWORKS_SCORED = 2  # source-only and adapted
_CHECKPOINTS_KEPT = 2


def plan(
    source_model: SourceLike | None,
    target_images: Path | str | None,
    output_dir: Path | str,
    *,
    card: CardLike | None = None,
    sam_checkpoint: Path | str | None = None,
    sam_type: SamType = "auto",
    masks: Path | str | None = None,
    val_images: Path | str | None = None,
    val_labels: Path | str | None = None,
    search: bool = False,
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> Plan:
    """Say what `adapt` (or with `search` `tune_hyperparameters`) would do with these arguments.

    All inputs are looked at, and everything missing is named, not the first alone. What can be measured
    is: the masks of one image, up to three training steps at the real crop and batch, the evaluation of
    one image, in this process, without a cluster. Nothing is written below `output_dir`.

    Args:
        search: Plan `tune_hyperparameters`.
        The others are those of `adapt`.

    Returns:
        The plan. Estimates are for this machine and its device; ASHA makes a search shorter.
    """
    config = config or Config()
    started = time.monotonic()
    request = Request(
        "tune" if search else "adapt",
        source_model,
        target_images,
        output_dir,
        config,
        card=card,
        sam_checkpoint=sam_checkpoint,
        sam_type=sam_type,
        masks=masks,
        val_images=val_images,
        val_labels=val_labels,
    )
    inputs = survey(request)
    job = _Job(inputs, config, _counts(request, inputs))
    counts = job.counts
    stages, not_measured = _measure(job, progress)
    return Plan(
        found=inputs.found,
        missing=inputs.missing,
        device=job.here,
        class_set=inputs.source.classes.name if inputs.source else "",
        images=len(inputs.images),
        held_out=counts.held_out,
        labelled=len(inputs.labelled),
        masks_to_make=counts.masks,
        num_steps=config.train.num_steps,
        batch_size=config.train.batch_size,
        crop_size=config.train.augment.crop_size,
        trials=counts.trials,
        stages=tuple(stages),
        not_measured=tuple(not_measured),
        free_mb=_free_mb(Path(output_dir).absolute()),
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class _Counts:
    masks: int
    """Images whose masks are still to be made."""
    held_out: int
    labelled: int
    trials: int


def _counts(request: Request, inputs: Survey) -> _Counts:
    config = request.config
    _, held_out = split(inputs.images, inputs.masks, config)
    trials = config.tune.num_trials if request.kind == "tune" else 0
    left = 0
    if inputs.recipe is not None and request.masks is None:
        folder = Path(request.output_dir) / "masks"
        left = len(images_to_do(folder, inputs.recipe, inputs.images, config.masks.max_pixels))
    return _Counts(left, len(held_out), len(inputs.labelled), trials)


@dataclass
class _Job:
    """What is measured, and the masks of one image once they are known."""

    inputs: Survey
    config: Config
    counts: _Counts
    masks: list[dict] = field(default_factory=list)

    @property
    def here(self) -> str:
        """The device that measures: this machine's."""
        try:
            return cluster.local_device(self.config.compute)
        except SfssError:  # the plan lists it as missing
            return "cpu"


def _measure(job: _Job, progress: ProgressSink) -> tuple[list[Stage], list[str]]:
    """Stages that could be measured, and lines for those that could not."""
    stages: list[Stage] = []
    lines: list[str] = []
    inputs = job.inputs

    def attempt(name: str, needs: list[str], work: Callable[[_Job], list[Stage]]) -> None:
        lacking = [need for need in needs if need in inputs.missing]
        if lacking:
            lines.append(f"{name}: not measured without {', '.join(lacking)}")
            return
        progress(f"measuring {name}")
        try:
            stages.extend(work(job))
        except SfssError as error:
            lines.append(f"{name}: not measured ({error})")

    regions = "masks" if "masks" in {*inputs.found, *inputs.missing} else "regions"
    attempt("masks", ["target images", regions], _masks)
    attempt("training", ["source model", "target images", regions], _training)
    attempt("evaluation", ["source model", "target images"], _evaluation)
    return stages, lines


def _pool(device: str, asked: int) -> int:
    """Processes of a pool here: one per GPU, or one per CPU."""
    if device == "cuda":
        import torch

        return asked or torch.cuda.device_count()
    return asked or os.cpu_count() or 1


def _masks(job: _Job) -> list[Stage]:
    """The time of an image's masks; nothing where masks are given."""
    from sfss_ray.inspection.measurements import limited_threads, measure_masks

    inputs, config = job.inputs, job.config
    if inputs.masks is not None:
        job.masks.extend(inputs.masks.load(inputs.images[0].image_id)["masks"])
        return []
    assert inputs.recipe is not None
    device = job.here if inputs.recipe.is_network else "cpu"
    pool = _pool(device, config.compute.mask_actors)
    image = inputs.images[0].read()
    with limited_threads((os.cpu_count() or 1) // pool):
        measured, found = measure_masks(inputs.recipe, inputs.region_weights, image, config, device)
    job.masks.extend(found)
    left = job.counts.masks
    return [
        Stage(
            "masks",
            left,
            "images",
            measured.seconds,
            max(1, min(pool, left)),
            measured.memory_mb,
            left * measured.disk_mb,
            measured.note,
        )
    ]


def _training(job: _Job) -> list[Stage]:
    from sfss_ray.inspection.measurements import limited_threads, measure_training

    inputs, config, counts = job.inputs, job.config, job.counts
    assert inputs.source is not None
    with limited_threads(int(config.compute.cpus_per_worker)):
        measured = measure_training(inputs.source, inputs.images[0], job.masks, config, job.here)
    steps, memory = config.train.num_steps, measured.memory_mb
    stages = []
    kept = _CHECKPOINTS_KEPT * measured.disk_mb
    if counts.trials:
        fitting = max(1, min(counts.trials, _trials_at_once(job)))
        rounds = math.ceil(counts.trials / fitting)
        note = f"{counts.trials} trials, at most; {measured.note}"
        disk = counts.trials * measured.disk_mb * 1.5  # a state and a student each
        units = rounds * fitting * steps
        stages.append(
            Stage("search", units, "steps", measured.seconds, fitting, memory, disk, note)
        )
    stages.append(
        Stage("training", steps, "steps", measured.seconds, 1, memory, kept * 1.25, measured.note)
    )
    return stages


def _trials_at_once(job: _Job) -> int:
    compute = job.config.compute
    if compute.concurrent_trials:
        return compute.concurrent_trials
    if job.here == "cuda":
        return _pool(job.here, 0) // compute.num_workers
    return int((os.cpu_count() or 1) / (compute.cpus_per_worker * compute.num_workers))


def _evaluation(job: _Job) -> list[Stage]:
    from sfss_ray.inspection.measurements import limited_threads, measure_evaluation
    from sfss_ray.tune.trial import evaluations_per_trial

    inputs, config, counts = job.inputs, job.config, job.counts
    assert inputs.source is not None
    file = inputs.labelled[0] if inputs.labelled else inputs.images[0]
    with limited_threads(int(config.compute.cpus_per_worker)):
        measured = measure_evaluation(inputs.source, file, config, job.here)
    shown = counts.held_out + counts.labelled
    watched = evaluations_per_trial(config) * (1 + counts.trials)
    note = f"{watched} looks at {shown} images, then {_NETWORKS_SCORED} networks; {measured.note}"
    units = shown * (watched + _NETWORKS_SCORED)
    memory = measured.memory_mb
    return [Stage("evaluation", units, "images", measured.seconds, 1, memory, 0.0, note)]


def _free_mb(folder: Path) -> float:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e6
