"""Checks of all inputs of a run, before a cluster is started.

`adapt`, `tune_hyperparameters` and `train_student` stop at the first problem, and `plan` lists all of
them. Both use the same checks, so that a plan never promises what a run refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sfss_ray.config import Config, override
from sfss_ray.config.consistency import (
    check_keep,
    check_neighbour_space,
    check_neighbour_use,
    check_stage,
    require_held_out,
    score_name,
)
from sfss_ray.config.space import default_space, parse_space
from sfss_ray.config.space_check import check_space, planned_trials
from sfss_ray.config.train import LEAST_SOURCE_SHARE
from sfss_ray.data.content import Content
from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.data.image_folder import first_readable, open_images
from sfss_ray.data.labelled import PairOptions, load_labelled
from sfss_ray.data.pairing import pair_labels
from sfss_ray.errors import CheckpointError, DataError, SfssError
from sfss_ray.inputs.cluster_check import check_cluster
from sfss_ray.inputs.crop_size import with_crop_size
from sfss_ray.inputs.labels import require_both
from sfss_ray.inputs.module_check import check_module, needs_check
from sfss_ray.inputs.record import input_files, run_record, unchanged_contents
from sfss_ray.inputs.request import Inputs, Request, split_target_images
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.concept_stage import ConceptStage, check_concepts
from sfss_ray.masks.existing import open_masks
from sfss_ray.masks.regions import RegionRecipe, make_recipe, note_of
from sfss_ray.models.source import Source, open_source
from sfss_ray.models.user_code.carried_module import check_travels
from sfss_ray.runtime import cluster
from sfss_ray.runtime.resources import actor_demand, actor_gpus
from sfss_ray.runtime.run_folder import refuse_inside, refuse_other_run
from sfss_ray.storage.files import lasting_place, require_writable, unusable_line
from sfss_ray.storage.places import ObjectPath, Place

_Result = TypeVar("_Result")


@dataclass
class Survey:
    """Results of the checks of a request; a part is None or empty where its check failed."""

    stop_at_first: bool
    """Whether the first problem is raised instead of listed."""
    source: Source | None = None
    images: tuple[ImageFile, ...] = ()
    labelled: tuple[LabelledImage, ...] = ()
    recipe: RegionRecipe | None = None
    region_weights: Place | None = None
    masks: MaskStore | None = None
    concepts: ConceptStage | None = None
    device: str = "cpu"
    config: Config = field(default_factory=Config)
    """The request's config, with the crop size settled."""
    contents: dict[str, Content] | None = None
    notes: list[str] = field(default_factory=list)
    found: dict[str, str] = field(default_factory=dict)
    """Input -> its description."""
    missing: dict[str, str] = field(default_factory=dict)
    """Input -> its problem."""

    def check(
        self, name: str, work: Callable[[], tuple[_Result, str]], default: _Result
    ) -> _Result:
        """Do the check of one input.

        Args:
            name: The input.
            work: Returns the checked input and its description, which goes to `found`. Its error
                goes to `missing`, or is raised at once.
            default: Result of a failed check.
        """
        try:
            result, description = work()
        except (SfssError, OSError) as error:
            if self.stop_at_first:
                raise
            line = unusable_line(error) if isinstance(error, OSError) else None
            self.missing[name] = line or str(error)
            return default
        self.found[name] = description
        return result

    def complete(self) -> Inputs:
        """Return the inputs of a survey that has found no problem."""
        assert self.source is not None
        assert not self.missing
        return Inputs(
            self.source,
            self.images,
            self.labelled,
            self.recipe,
            self.region_weights,
            self.masks,
            self.device,
            self.config,
            self.contents,
            tuple(self.notes),
            self.concepts,
        )


def check_inputs(request: Request) -> Inputs:
    """Do every check of a run and return its inputs.

    Raises:
        SfssError: the first problem, in one line.
    """
    return survey_inputs(request, stop_at_first=True).complete()


def survey_inputs(request: Request, stop_at_first: bool = False) -> Survey:
    """Do every check of a run; without `stop_at_first` no problem hides another."""
    survey = Survey(stop_at_first, config=request.config)
    survey.source = survey.check("source model", lambda: _check_source(request, survey), None)
    survey.images = survey.check("target images", lambda: _check_images(request, survey), ())
    if survey.images:
        survey.config = survey.check("crops", lambda: _choose_crops(survey), survey.config)
    if (request.val_images, request.val_labels) != (None, None):
        survey.labelled = survey.check("val labels", lambda: _check_labels(request, survey), ())
    if request.masks is None:
        regions = survey.check("regions", lambda: _check_regions(request), (None, None))
        survey.recipe, survey.region_weights = regions
    else:
        survey.masks = survey.check("masks", lambda: _check_masks(request, survey), None)
    if request.config.masks.concepts:
        survey.concepts = survey.check("concepts", lambda: _check_concepts(survey), None)
    survey.check("settings", lambda: (None, _check_settings(request, survey)), None)
    # The record of the output folder can be compared only once all inputs above are known.
    survey.check("output", lambda: (None, _check_output(request, survey)), None)
    survey.device = survey.check("device", lambda: _check_device(request, survey), "cpu")
    source = survey.source if survey.images else None
    if source is not None:
        training, _ = split_target_images(survey.images, survey.masks, survey.config)
        if needs_check(source, survey.config, survey.device, len(training)):
            survey.check(
                "module", lambda: (None, _check_module(survey, source, len(training))), None
            )
    return survey


def _check_source(request: Request, survey: Survey) -> tuple[Source, str]:
    if request.source_model is None:
        raise DataError("no source model was given: give a checkpoint or a model file")
    weights = request.config.source_weights
    source = open_source(request.source_model, request.card, weights, request.class_groups)
    _require_two_classes(source)
    check_travels(source)
    survey.notes.extend([*source.opening_lines(), *source.notes])
    return source, "; ".join(
        [f"{source.origin}: {source.network}, {source.classes.name}", *source.notes]
    )


def _require_two_classes(source: Source) -> None:
    """Raise an error for a model of one class: whatever its training does, it predicts that class."""
    if len(source.classes) > 1:
        return
    name = source.classes.classes[0]
    if source.class_groups is not None:
        raise DataError(
            f"{source.class_groups} leave the source model 1 class, {name!r}: allowed are 2 or more;"
            " give more groups, such as one for each class that the target distinguishes"
        )
    raise CheckpointError(
        f"source model {source.origin!r} has 1 class, {name!r}: allowed are 2 or more; give a model with"
        " an output for each class, such as background and foreground"
    )


def _check_module(survey: Survey, source: Source, num_training: int) -> str:
    """Check the network at the size of the first image that can be read."""
    height, width = first_readable(survey.images, None).read(max_pixels=None).shape[:2]
    return check_module(source, (height, width), survey.config, survey.device, num_training)


def _check_images(request: Request, survey: Survey) -> tuple[tuple[ImageFile, ...], str]:
    folder = request.target_images
    if folder is None:
        raise DataError("no target images were given: give a folder")
    model_white = survey.source.white_level if survey.source else None
    images, notes = open_images(folder, request.config, model_white)
    survey.notes.extend(notes)
    # The size of an image counts where its masks are made.
    first_readable(images, request.config.masks.max_pixels if request.masks is None else None)
    return tuple(images), ", ".join([f"{folder}: {len(images)} images", *notes])


def _choose_crops(survey: Survey) -> tuple[Config, str]:
    size_multiple = survey.source.size_multiple if survey.source else 1
    config, line = with_crop_size(survey.config, "train", survey.images, size_multiple)
    survey.notes.append(f"crops: {line}")
    return config, line


def _check_labels(request: Request, survey: Survey) -> tuple[tuple[LabelledImage, ...], str]:
    folders = require_both(request.val_images, request.val_labels)
    # Without a source model there is no class set, but files that do not pair up can be named.
    if survey.source is None:
        pairs = tuple(pair_labels(*folders))
    else:
        image_white = next((image.white.value for image in survey.images if image.white), None)
        white = image_white or survey.source.white_level
        classes = survey.source.classes
        dataset = load_labelled(*folders, classes, request.config, PairOptions(model_white=white))
        survey.notes.extend(f"val: {note}" for note in dataset.notes)
        pairs = dataset.pairs
    return pairs, f"{len(pairs)} pairs"


def _check_regions(request: Request) -> tuple[tuple[RegionRecipe | None, Place | None], str]:
    recipe, weights = make_recipe(request.config.masks, request.sam_checkpoint, request.sam_type)
    return (recipe, weights), f"{recipe.sam_type or recipe.source} ({note_of(recipe.as_dict())})"


def _check_masks(request: Request, survey: Survey) -> tuple[MaskStore | None, str]:
    assert request.masks is not None
    if request.sam_checkpoint is not None:
        raise DataError(
            "masks and a SAM checkpoint were given: give masks that exist already, or a checkpoint to"
            " make some"
        )
    store = open_masks(request.masks, survey.images)
    count = store.count(image.image_id for image in survey.images)
    ending = "" if store.has_embeddings else ", without embeddings"
    return store, f"{request.masks}: {count} masks of {len(survey.images)} images{ending}"


def _check_concepts(survey: Survey) -> tuple[ConceptStage | None, str]:
    if survey.source is None:
        raise DataError("masks.concepts is prompted with the classes of the source model: give one")
    stage = check_concepts(survey.config, survey.source.classes.classes)
    return stage, stage.describe()


def _check_settings(request: Request, survey: Survey) -> str:
    """Check settings that depend on each other or on the inputs; returns their description."""
    config = request.config
    check_stage(config.train, config.compute)
    has_embeddings = _has_embeddings(survey)
    check_neighbour_space(config.train.loss, has_embeddings)
    check_neighbour_use(config)
    config = survey.config = _with_neighbours(survey.config, has_embeddings)
    training, held_out = split_target_images(survey.images, survey.masks, config)
    if survey.images and not training:
        raise DataError(
            f"no readable image in {str(request.target_images)!r}: give images to adapt to"
        )
    note: list[str] = []
    if survey.images:
        check_keep(config.train, len(held_out))
        survey.config, note = _with_source_share(survey.config, len(training))
        if request.kind == "tune" and _searches(config, "train.source_share"):
            note = []  # each trial has a share of its own
        survey.notes.extend(note)
    if request.kind != "tune":
        return ", ".join([f"{config.train.num_steps} steps", *note])
    config = survey.config = _with_space(survey.config)
    check_space(config, has_embeddings)
    score = score_name(config.tune, request.val_images is not None)
    if survey.images:
        require_held_out(score, len(held_out))
    trials, limit = planned_trials(config), config.tune.num_trials
    reason = (
        f" (num_trials is {limit}, but the space has {trials} points)" if trials < limit else ""
    )
    steps = f"{trials} trials of {config.train.num_steps} steps{reason}"
    return ", ".join([steps, f"compared by {score}", *note])


def _has_embeddings(survey: Survey) -> bool:
    """Return whether the masks of a run have embeddings; true where their own check failed."""
    if survey.masks is not None:
        return survey.masks.has_embeddings
    return survey.recipe is None or survey.recipe.embeddings


def _with_neighbours(config: Config, masks_have_embeddings: bool) -> Config:
    """Return the config with the weight of neighbours settled."""
    weight = config.train.loss.weight_of_neighbours(masks_have_embeddings)
    return override(config, {"train.loss.neighbour_weight": weight})


def _with_space(config: Config) -> Config:
    """Return the config with the search space settled."""
    if config.tune.space is not None:
        return config
    train = config.train
    space = default_space(train.ema_momentum, train.loss.asks_neighbours)
    return override(config, {"tune.space": list(space)})


def _with_source_share(config: Config, num_images: int) -> tuple[Config, list[str]]:
    """Return the config with the source model's share settled, and a note of a share above the usual."""
    share = config.train.share_of_source(num_images)
    note = []
    if config.train.source_share is None and share > LEAST_SOURCE_SHARE:
        note = [
            f"the student keeps {share:.0%} of the source model instead of {LEAST_SOURCE_SHARE:.0%},"
            f" because {num_images} training images are few (train.source_share sets another share)"
        ]
    return override(config, {"train.source_share": share}), note


def _searches(config: Config, name: str) -> bool:
    return any(dimension.name == name for dimension in parse_space(config.tune.entries))


def _check_output(request: Request, survey: Survey) -> str:
    folder = lasting_place(request.output_dir)
    if request.kind == "tune" and isinstance(folder, ObjectPath) and folder.has_password:
        raise DataError(
            f"the address {str(folder)!r} was given with a password, which Ray Tune would store in its"
            " files there: set the credentials on the machines of the cluster"
            " (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), and give the address without"
        )
    if request.kind != "train":  # which draws no pictures
        for images in (request.target_images, request.val_images, request.val_labels):
            if images is not None:
                refuse_inside(folder, images)
    if isinstance(folder, Path):
        require_writable(folder)
    if survey.missing:
        return str(folder)
    inputs = survey.complete()
    if not refuse_other_run(folder, run_record(request, inputs)):
        return f"{folder}: a new run"
    survey.contents = unchanged_contents(folder, input_files(inputs))
    return f"{folder}: resumes the run in it"


def _check_device(request: Request, survey: Survey) -> tuple[str, str]:
    config = request.config
    device, resources = check_cluster(config, is_search=request.kind == "tune")
    makes_masks = survey.recipe is not None and survey.recipe.is_network
    if makes_masks or survey.concepts is not None:
        gpus = actor_gpus(config.compute, device)
        actor_demand("mask", config.compute.mask_actors, gpus).require(resources)
    description = f"{device} ({resources.describe()})"
    local_device = cluster.local_device(config.compute)
    if local_device != device:
        description += f"; this machine itself computes on {local_device}"
    if resources.awaits_gpus:
        description += f"; a run waits up to {config.compute.wait_for_nodes_s:g} s for a GPU"
    survey.notes.append(f"device: {description}")
    return device, description
