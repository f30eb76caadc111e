"""`plan`: inputs found and missing, and what each stage of a run costs, before anything runs."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sfss_ray.config import Config
from sfss_ray.data.folders import read_image, split_held_out
from sfss_ray.errors import SfssError
from sfss_ray.masks.regions import SamType
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import SourceLike
from sfss_ray.planning.inputs import Inputs, look_at_inputs
from sfss_ray.planning.result import Plan, Stage
from sfss_ray.progress import ProgressSink, print_line

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
    sam = (sam_checkpoint, sam_type)
    val = (val_images, val_labels)
    inputs = look_at_inputs(source_model, target_images, output_dir, sam, val, card, config)
    training, held_out = split_held_out(
        inputs.images, config.evaluation.held_out_share, config.evaluation.held_out_max
    )
    trials = config.tune.num_trials if search else 0
    counts = _Counts(len(training), len(held_out), len(inputs.labelled), trials)
    stages, not_measured = _measure(inputs, counts, config, progress)
    return Plan(
        found=inputs.found,
        missing=inputs.missing,
        device=inputs.device,
        class_set=inputs.source.classes.name if inputs.source else "",
        images=len(inputs.images),
        held_out=len(held_out),
        labelled=len(inputs.labelled),
        masks_to_make=len(inputs.images) - inputs.masks_there,
        num_steps=config.train.num_steps,
        batch_size=config.train.batch_size,
        crop_size=config.train.augment.crop_size,
        trials=trials,
        stages=tuple(stages),
        not_measured=tuple(not_measured),
        free_mb=_free_mb(Path(output_dir).absolute()),
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class _Counts:
    training: int
    held_out: int
    labelled: int
    trials: int


def _measure(
    inputs: Inputs, counts: _Counts, config: Config, progress: ProgressSink
) -> tuple[list[Stage], list[str]]:
    """Stages that could be measured, and lines for those that could not."""
    stages: list[Stage] = []
    lines: list[str] = []
    masks: list[dict] = []

    def attempt(name: str, needs: list[str], work: Callable[[], list[Stage]]) -> None:
        lacking = [need for need in needs if need in inputs.missing]
        if lacking:
            lines.append(f"{name}: not measured without {', '.join(lacking)}")
            return
        progress(f"measuring {name}")
        try:
            stages.extend(work())
        except SfssError as error:
            lines.append(f"{name}: not measured ({error})")

    attempt("masks", ["target images", "regions"], lambda: [_masks(inputs, config, masks)])
    needs = ["source model", "target images", "regions"]
    attempt("training", needs, lambda: _training(inputs, counts, config, masks))
    attempt("evaluation", needs[:2], lambda: [_evaluation(inputs, counts, config)])
    return stages, lines


def _pool(device: str, asked: int) -> int:
    """Processes of a pool here: one per GPU, or one per CPU."""
    if device == "cuda":
        import torch

        return asked or torch.cuda.device_count()
    return asked or os.cpu_count() or 1


def _masks(inputs: Inputs, config: Config, masks: list[dict]) -> Stage:
    from sfss_ray.planning.measure import measure_masks, threads

    assert inputs.recipe is not None
    device = inputs.device if inputs.recipe.is_network else "cpu"
    pool = _pool(device, config.compute.mask_actors)
    image = read_image(inputs.images[0].path)
    with threads((os.cpu_count() or 1) // pool):
        measured, found = measure_masks(inputs.recipe, inputs.region_weights, image, config, device)
    masks.extend(found)
    left = len(inputs.images) - inputs.masks_there
    return Stage(
        "masks",
        left,
        "images",
        measured.seconds,
        max(1, min(pool, left)),
        measured.memory_mb,
        left * measured.disk_mb,
        measured.note,
    )


def _training(inputs: Inputs, counts: _Counts, config: Config, masks: list[dict]) -> list[Stage]:
    from sfss_ray.planning.measure import measure_training, threads

    assert inputs.source is not None
    assert inputs.recipe is not None
    with threads(int(config.compute.cpus_per_worker)):
        measured = measure_training(
            inputs.source, inputs.images[0], masks, inputs.recipe, config, inputs.device
        )
    steps, memory = config.train.num_steps, measured.memory_mb
    stages = []
    kept = _CHECKPOINTS_KEPT * measured.disk_mb
    if counts.trials:
        fitting = max(1, min(counts.trials, _trials_at_once(inputs, config)))
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


def _trials_at_once(inputs: Inputs, config: Config) -> int:
    compute = config.compute
    if compute.concurrent_trials:
        return compute.concurrent_trials
    if inputs.device == "cuda":
        return _pool(inputs.device, 0) // compute.num_workers
    return int((os.cpu_count() or 1) / (compute.cpus_per_worker * compute.num_workers))


def _evaluation(inputs: Inputs, counts: _Counts, config: Config) -> Stage:
    from sfss_ray.planning.measure import measure_evaluation, threads
    from sfss_ray.tune.search import looks

    assert inputs.source is not None
    file = inputs.labelled[0] if inputs.labelled else inputs.images[0]
    with threads(int(config.compute.cpus_per_worker)):
        measured = measure_evaluation(inputs.source, file, config, inputs.device)
    shown = counts.held_out + counts.labelled
    watched = looks(config) * (1 + counts.trials)
    note = f"{watched} looks at {shown} images, then {_NETWORKS_SCORED} networks; {measured.note}"
    units = shown * (watched + _NETWORKS_SCORED)
    return Stage("evaluation", units, "images", measured.seconds, 1, measured.memory_mb, 0.0, note)


def _free_mb(folder: Path) -> float:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e6
