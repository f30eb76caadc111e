"""`plan`: inputs found and missing, and the cost of each stage of a run, before anything runs."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence

from sfss_ray.config import Config
from sfss_ray.data.augment import fit_crop
from sfss_ray.data.group_files import ClassGroupsLike
from sfss_ray.inputs.check import survey_inputs
from sfss_ray.inputs.request import Request
from sfss_ray.inspection.plan_result import Plan
from sfss_ray.inspection.stage_estimates import StageEstimates, WorkCounts
from sfss_ray.masks.regions import SamType
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import SourceLike
from sfss_ray.runtime.progress import ProgressSink, print_line
from sfss_ray.storage.places import ObjectPath, Place, to_place
from sfss_ray.tracking.tracker import TrackerLike, check_trackers


def plan(
    source_model: SourceLike | None,
    target_images: Place | str | None,
    output_dir: Place | str,
    *,
    card: CardLike | None = None,
    class_groups: ClassGroupsLike | None = None,
    sam_checkpoint: Place | str | None = None,
    sam_type: SamType = "auto",
    masks: Place | str | None = None,
    val_images: Place | str | None = None,
    val_labels: Place | str | None = None,
    search: bool = False,
    config: Config | None = None,
    trackers: Sequence[TrackerLike] = (),
    progress: ProgressSink = print_line,
) -> Plan:
    """Describe what `adapt` (with `search`: `tune_hyperparameters`) would do with these arguments.

    All inputs are checked, and every problem is listed, not only the first. The cost of stages is
    measured in this process, without a cluster: the masks of one image, up to three training steps at
    the real crop and batch, and the evaluation of one image. Nothing is written below `output_dir`.

    `search` plans `tune_hyperparameters`. The other arguments are those of `adapt`.

    Returns:
        The plan. Estimates are for this machine and its device; ASHA makes a search shorter.
    """
    started = time.monotonic()
    request = Request(
        "tune" if search else "adapt",
        source_model,
        target_images,
        output_dir,
        config or Config(),
        card=card,
        class_groups=class_groups,
        sam_checkpoint=sam_checkpoint,
        sam_type=sam_type,
        masks=masks,
        val_images=val_images,
        val_labels=val_labels,
    )
    return _plan_request(request, trackers, started, progress)


def _plan_request(
    request: Request, trackers: Sequence[TrackerLike], started: float, progress: ProgressSink
) -> Plan:
    survey = survey_inputs(request)
    if trackers:
        survey.check("trackers", lambda: (None, _check_trackers(trackers)), None)
    train, counts = survey.config.train, WorkCounts.of(request, survey)
    multiple = survey.source.size_multiple if survey.source else 1
    estimates = StageEstimates(survey, survey.config, counts)
    estimates.measure(progress)
    return Plan(
        found=survey.found,
        missing=survey.missing,
        device=estimates.device,
        class_set=survey.source.classes.name if survey.source else "",
        images=len(survey.images),
        held_out=counts.held_out,
        labelled=counts.labelled,
        masks_to_make=counts.masks,
        num_steps=train.num_steps,
        batch_size=train.batch_size,
        crop_size=fit_crop(train.augment, multiple).crop_size,
        trials=counts.trials,
        stages=tuple(estimates.stages),
        not_measured=tuple(estimates.not_measured),
        free_mb=_free_mb(to_place(request.output_dir)),
        seconds=time.monotonic() - started,
    )


def _check_trackers(trackers: Sequence[TrackerLike]) -> str:
    check_trackers(trackers)
    return ", ".join(t if isinstance(t, str) else type(t).__name__ for t in trackers)


def _free_mb(folder: Place) -> float:
    """Return the free space of the disk that `folder` is or will be on; inf for object storage."""
    if isinstance(folder, ObjectPath):
        return math.inf
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e6
