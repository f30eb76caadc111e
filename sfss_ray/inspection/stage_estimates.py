"""Estimates of what each stage of a run costs here, from short measurements of its parts."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sfss_ray.config import Config
from sfss_ray.config.ranges import count_range
from sfss_ray.config.space_check import planned_trials
from sfss_ray.data.folders import ImageFile
from sfss_ray.data.image_folder import first_readable
from sfss_ray.errors import SfssError
from sfss_ray.inputs.check import Survey
from sfss_ray.inputs.request import Request, split_target_images
from sfss_ray.inspection.cost_meter import Cost, limited_threads
from sfss_ray.inspection.plan_result import Stage
from sfss_ray.masks.concept_stage import CONCEPT_FOLDER
from sfss_ray.masks.regions import RegionRecipe
from sfss_ray.masks.resume import images_to_do
from sfss_ray.runtime import cluster
from sfss_ray.runtime.progress import ProgressSink
from sfss_ray.storage.places import Place, to_place

_NETWORKS_SCORED = 4  # source-only, BatchNorm-only, student and teacher
_CHECKPOINTS_KEPT = 2
_CHECKPOINT_MARGIN = 1.25  # a checkpoint holds more than the tensors that are measured
_BEST_MARGIN = 1.5  # with train.keep best it holds student and teacher twice
_TRIAL_CHECKPOINTS = 1.5  # a state and a student each


@dataclass(frozen=True)
class WorkCounts:
    """Amounts of work in a run."""

    masks: int
    """Images whose masks are still to be made."""
    held_out: int
    """Held-out target images."""
    labelled: int
    """Labelled images."""
    trials: int
    """Trials of a search; 0 without one."""
    concepts: int = 0
    """Images whose masks with classes are still to be made."""

    @classmethod
    def of(cls, request: Request, survey: Survey) -> WorkCounts:
        """Count the work of a request, from the inputs that its survey could check."""
        config = request.config
        _, held_out = split_target_images(survey.images, survey.masks, config)
        trials = 0
        if request.kind == "tune":
            is_refused = "settings" in survey.missing  # so that a space may not be countable
            trials = config.tune.num_trials if is_refused else planned_trials(config)
        masks = concepts = 0
        output = to_place(request.output_dir)
        if survey.concepts is not None:
            recipe = survey.concepts.recipe.for_images(survey.images)
            concepts = _count_missing(output / CONCEPT_FOLDER, recipe, survey)
        if survey.recipe is not None and request.masks is None:
            recipe = survey.recipe.for_images(survey.images)
            masks = _count_missing(output / "masks", recipe, survey)
        return cls(masks, len(held_out), len(survey.labelled), trials, concepts)


def _count_missing(folder: Place, recipe: RegionRecipe, survey: Survey) -> int:
    """Count the images without masks in a folder; the survey lists an output that cannot be used."""
    try:
        return len(images_to_do(folder, recipe, survey.images, survey.config.masks.max_pixels))
    except OSError:
        return len(survey.images)


@dataclass
class StageEstimates:
    """Measures the stages of a run one after the other, as far as their inputs are there."""

    survey: Survey
    config: Config
    counts: WorkCounts
    stages: list[Stage] = field(default_factory=list)
    not_measured: list[str] = field(default_factory=list)
    """Lines for people on stages that could not be measured."""
    _masks: list[dict[str, Any]] = field(default_factory=list)
    """Masks of the measured image, once they are made; a training step needs them."""

    @functools.cached_property
    def _image(self) -> ImageFile:
        """The measured image: the first one that a run would use."""
        masks, max_pixels = self.survey.masks, self.config.masks.max_pixels
        if masks is None:
            return first_readable(self.survey.images, max_pixels)
        images = [image for image in self.survey.images if image.image_id not in masks.errors]
        return first_readable(images, None)

    @property
    def device(self) -> str:
        """The device of the measurements: this machine's."""
        try:
            return cluster.local_device(self.config.compute)
        except SfssError:  # the plan lists it as missing
            return "cpu"

    def measure(self, progress: ProgressSink) -> None:
        """Measure every stage."""
        survey = self.survey
        regions = "masks" if "masks" in {*survey.found, *survey.missing} else "regions"
        measurements: dict[str, tuple[Callable[[], Sequence[Stage]], list[str]]] = {
            "masks": (self._measure_masks, ["target images", regions]),
            "concepts": (self._measure_concepts, ["target images", "source model", "concepts"]),
            "training": (
                self._measure_training,
                ["source model", "module", "target images", regions],
            ),
            "evaluation": (self._measure_evaluation, ["source model", "module", "target images"]),
        }
        if not self.config.masks.concepts:
            del measurements["concepts"]
        for name, (measure, needed_inputs) in measurements.items():
            missing = [need for need in needed_inputs if need in survey.missing]
            if missing:
                self.not_measured.append(f"{name}: not measured without {', '.join(missing)}")
                continue
            progress(f"measuring {name}")
            try:
                self.stages += measure()
            except SfssError as error:
                self.not_measured.append(f"{name}: not measured ({error})")

    def _measure_masks(self) -> list[Stage]:
        """Measure the masks of one image; existing masks cost nothing."""
        from sfss_ray.inspection.measurements import measure_mask_generation

        survey, config = self.survey, self.config
        if survey.masks is not None:
            self._masks += survey.masks.load(self._image.image_id)["masks"]
            return []
        assert survey.recipe is not None
        # The actors of a pool share this machine's CPUs, so one of them gets its share here.
        device = self.device if survey.recipe.is_network else "cpu"
        pool_size = _local_pool_size(device, config.compute.mask_actors)
        image = self._image.read(max_pixels=None)
        with limited_threads((os.cpu_count() or 1) // pool_size):
            cost, masks = measure_mask_generation(
                survey.recipe, survey.region_weights, image, config, device
            )
        self._masks += masks
        count = self.counts.masks
        return [_pool_stage("masks", count, cost, pool_size)]

    def _measure_concepts(self) -> list[Stage]:
        """Measure the masks with classes of one image, where the config names a network for them."""
        from sfss_ray.inspection.measurements import measure_concepts

        survey, config = self.survey, self.config
        if survey.concepts is None:
            return []
        pool_size = _local_pool_size(self.device, config.compute.mask_actors)
        image, count = self._image.read(max_pixels=None), self.counts.concepts
        with limited_threads((os.cpu_count() or 1) // pool_size):
            cost = measure_concepts(survey.concepts, image, config, self.device)
        return [_pool_stage("concepts", count, cost, pool_size)]

    def _measure_training(self) -> list[Stage]:
        """Measure training steps; a search is many trainings, some of them at the same time."""
        from sfss_ray.inspection.measurements import measure_training

        survey, config, counts = self.survey, self.config, self.counts
        assert survey.source is not None
        with limited_threads(int(config.compute.cpus_per_worker)):
            cost = measure_training(survey.source, self._image, self._masks, config, self.device)
        steps = config.train.num_steps
        margin = _CHECKPOINT_MARGIN * (_BEST_MARGIN if config.train.keep == "best" else 1)
        training = Stage(
            name="training",
            units=steps,
            unit="steps",
            unit_seconds=cost.seconds,
            at_once=1,
            memory_mb=cost.memory_mb,
            disk_mb=_CHECKPOINTS_KEPT * cost.disk_mb * margin,
            note=cost.note,
        )
        trainings = [training]
        if config.report.baselines:
            baseline = f"at most, as it needs no masks; {cost.note}" if cost.note else "at most"
            trainings.append(dataclasses.replace(training, name="baseline", note=baseline))
        if not counts.trials:
            return trainings
        at_once = max(1, min(counts.trials, self._trials_at_once()))
        rounds = math.ceil(counts.trials / at_once)
        search = Stage(
            name="search",
            units=rounds * at_once * steps,
            unit="steps",
            unit_seconds=cost.seconds,
            at_once=at_once,
            memory_mb=cost.memory_mb,
            disk_mb=counts.trials * cost.disk_mb * _TRIAL_CHECKPOINTS,
            note=f"{counts.trials} trials, at most; {cost.note}",
        )
        return [search, *trainings]

    def _trials_at_once(self) -> int:
        compute = self.config.compute
        if compute.concurrent_trials:
            return compute.concurrent_trials
        if self.device == "cuda":
            return _local_pool_size("cuda", 0) // compute.workers.largest
        return int((os.cpu_count() or 1) / (compute.cpus_per_worker * compute.workers.largest))

    def _measure_evaluation(self) -> list[Stage]:
        """Measure one image; every report of every training evaluates all of them."""
        from sfss_ray.inspection.measurements import measure_evaluation
        from sfss_ray.tune.trial import evaluations_per_trial

        survey, config, counts = self.survey, self.config, self.counts
        assert survey.source is not None
        file = first_readable(survey.labelled, None) if survey.labelled else self._image
        with limited_threads(int(config.compute.cpus_per_worker)):
            cost = measure_evaluation(survey.source, file, config, self.device)
        images = counts.held_out + counts.labelled
        baselines = int(config.report.baselines)
        evaluations = evaluations_per_trial(config) * (1 + counts.trials + baselines)
        networks = _NETWORKS_SCORED + baselines
        note = f"{evaluations} evaluations of {images} images, then of {networks} networks"
        return [
            Stage(
                name="evaluation",
                units=images * (evaluations + networks),
                unit="images",
                unit_seconds=cost.seconds,
                at_once=1,
                memory_mb=cost.memory_mb,
                disk_mb=0.0,
                note=f"{note}; {cost.note}",
            )
        ]


def _pool_stage(name: str, count: int, cost: Cost, pool_size: int) -> Stage:
    """Return the stage of a pool of actors, of the cost of one image."""
    return Stage(
        name=name,
        units=count,
        unit="images",
        unit_seconds=cost.seconds,
        at_once=max(1, min(pool_size, count)),
        memory_mb=cost.memory_mb,
        disk_mb=count * cost.disk_mb,
        note=cost.note,
    )


def _local_pool_size(device: str, requested: int | str) -> int:
    """Return the processes of a pool on this machine: one per GPU, or one per CPU.

    Args:
        device: Of the networks.
        requested: A number, or a range that is filled as far as this machine goes; 0 for no request.
    """
    available = os.cpu_count() or 1
    if device == "cuda":
        import torch

        available = torch.cuda.device_count()
    counts = count_range(requested)
    return max(counts.smallest, min(counts.largest, available)) if requested else available
