"""The inputs of a run, each checked once and read once, before a cluster is started.

`adapt`, `tune_hyperparameters` and `train_student` stop at the first problem. `plan` lists all of
them. Both come from the same checks, so that a plan never promises what a run refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from sfss_ray.config import Config, flatten
from sfss_ray.config.consistency import check_stage, require_held_out, score_name
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.data.content import Content
from sfss_ray.data.folders import ImageFile, LabelledImage, split_held_out
from sfss_ray.data.image_folder import open_images
from sfss_ray.data.labelled import PairOptions, load_labelled
from sfss_ray.data.pairing import pair_labels
from sfss_ray.errors import DataError, SfssError
from sfss_ray.inputs.record import (
    claim_run,
    hash_of_ids,
    hash_of_names,
    labelled_files,
    unchanged_contents,
)
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.existing import open_masks
from sfss_ray.masks.regions import NOTES, RegionRecipe, SamType, make_recipe
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import Source, SourceLike, open_source
from sfss_ray.models.user_code.carried_module import check_travels
from sfss_ray.runtime import cluster
from sfss_ray.runtime.progress import ProgressSink, silent
from sfss_ray.runtime.run_folder import refuse_other_run
from sfss_ray.storage.files import require_lasting


@dataclass(frozen=True)
class Request:
    """What a caller asked for; see the arguments of `adapt`."""

    kind: Literal["adapt", "tune", "train"]
    source_model: SourceLike | None
    target_images: Path | str | None
    output_dir: Path | str
    config: Config
    card: CardLike | None = None
    sam_checkpoint: Path | str | None = None
    sam_type: SamType = "auto"
    masks: Path | str | None = None
    val_images: Path | str | None = None
    val_labels: Path | str | None = None


@dataclass(frozen=True)
class Inputs:
    """Inputs that have passed every check."""

    source: Source
    images: tuple[ImageFile, ...]
    labelled: tuple[LabelledImage, ...]
    recipe: RegionRecipe | None
    """How masks are made; None where masks are given."""
    region_weights: Path | None
    masks: MaskStore | None
    """The masks that were given."""
    device: str
    """Of the workers, 'cpu' or 'cuda'."""
    contents: dict[str, Content] | None = field(default=None, repr=False)
    """Of the input files by name, where a run is resumed."""
    notes: tuple[str, ...] = ()
    """What was assumed or chosen, in lines for people."""

    @property
    def classes(self) -> ClassSet:
        """The source model's."""
        return self.source.classes


_Found = TypeVar("_Found")


@dataclass
class Survey:
    """What the checks of a request found. A part is None or empty where its check failed."""

    stop_at_first: bool
    source: Source | None = None
    images: tuple[ImageFile, ...] = ()
    labelled: tuple[LabelledImage, ...] = ()
    recipe: RegionRecipe | None = None
    region_weights: Path | None = None
    masks: MaskStore | None = None
    device: str = "cpu"
    contents: dict[str, Content] | None = None
    notes: list[str] = field(default_factory=list)
    found: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Input -> what is wrong with it."""

    def check(self, name: str, work: Callable[[], tuple[_Found, str]], absent: _Found) -> _Found:
        """Do one check: its text is found, or its error is missing, or it is raised at once."""
        try:
            result, text = work()
        except SfssError as error:
            if self.stop_at_first:
                raise
            self.missing[name] = str(error)
            return absent
        self.found[name] = text
        return result

    def complete(self) -> Inputs:
        """The inputs, when nothing is missing."""
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
            self.contents,
            tuple(self.notes),
        )


def check_inputs(request: Request) -> Inputs:
    """Every check of a run; the first problem is raised.

    Raises:
        SfssError: what is wrong, in one line.
    """
    return survey(request, stop_at_first=True).complete()


def survey(request: Request, stop_at_first: bool = False) -> Survey:
    """Every check of a run; without `stop_at_first` no problem hides another."""
    seen = Survey(stop_at_first)
    seen.source = seen.check("source model", lambda: _source(request), None)
    seen.images = seen.check("target images", lambda: _images(request, seen), ())
    if (request.val_images, request.val_labels) != (None, None):
        seen.labelled = seen.check("val labels", lambda: _labelled(request, seen), ())
    if request.masks is None:
        regions = seen.check("regions", lambda: _regions(request), (None, None))
        seen.recipe, seen.region_weights = regions
    else:
        seen.masks = seen.check("masks", lambda: _given_masks(request, seen), None)
    seen.check("settings", lambda: (None, _settings(request, seen)), None)
    seen.check("output", lambda: (None, _output(request, seen)), None)
    seen.device = seen.check("device", lambda: _device(request, seen), "cpu")
    return seen


def _source(request: Request) -> tuple[Source, str]:
    if request.source_model is None:
        raise DataError("no source model was given: give a checkpoint or a model file")
    source = open_source(request.source_model, request.card, request.config.source_weights)
    check_travels(source)
    return source, f"{source.origin}: {source.network}, {source.classes.name}"


def _images(request: Request, seen: Survey) -> tuple[tuple[ImageFile, ...], str]:
    folder = request.target_images
    if folder is None:
        raise DataError("no target images were given: give a folder")
    white_of_model = seen.source.white_level if seen.source else None
    images, notes = open_images(folder, request.config, white_of_model)
    seen.notes.extend(notes)
    return tuple(images), ", ".join([f"{folder}: {len(images)} images", *notes])


def _labelled(request: Request, seen: Survey) -> tuple[tuple[LabelledImage, ...], str]:
    images, labels = request.val_images, request.val_labels
    if seen.source is not None:
        target_white = next((image.white.value for image in seen.images if image.white), None)
        white = target_white or seen.source.white_level
        both, classes = _require_both(images, labels), seen.source.classes
        folder = load_labelled(*both, classes, request.config, PairOptions(model_white=white))
        seen.notes.extend(f"val: {note}" for note in folder.notes)
        pairs = folder.pairs
    else:
        pairs = tuple(pair_labels(*_require_both(images, labels)))
    return pairs, f"{len(pairs)} pairs"


def _regions(request: Request) -> tuple[tuple[RegionRecipe | None, Path | None], str]:
    recipe, weights = make_recipe(request.config.masks, request.sam_checkpoint, request.sam_type)
    return (recipe, weights), f"{recipe.sam_type or recipe.source} ({NOTES[recipe.source]})"


def _given_masks(request: Request, seen: Survey) -> tuple[MaskStore | None, str]:
    assert request.masks is not None
    if request.sam_checkpoint is not None:
        raise DataError(
            "masks and a SAM checkpoint were given: give masks that exist already, or a checkpoint to"
            " make some"
        )
    store = open_masks(request.masks, seen.images)
    masks = store.count(image.image_id for image in seen.images)
    return store, f"{request.masks}: {masks} masks of {len(seen.images)} images"


def _settings(request: Request, seen: Survey) -> str:
    """Settings that only make sense together, and with the inputs."""
    config = request.config
    check_stage(config.train, config.compute)
    training, held_out = split(seen.images, seen.masks, config)
    if seen.images and not training:
        raise DataError(
            f"no readable image in {str(request.target_images)!r}: give images to adapt to"
        )
    if request.kind != "tune":
        return f"{config.train.num_steps} steps"
    score = score_name(config.tune, request.val_images is not None)
    if seen.images:
        require_held_out(score, len(held_out))
    return f"{config.tune.num_trials} trials of {config.train.num_steps} steps, compared by {score}"


def split(
    images: Sequence[ImageFile], masks: MaskStore | None, config: Config
) -> tuple[list[ImageFile], list[ImageFile]]:
    """(training, held-out) images; those that the masks' maker could not read are left out."""
    usable = [image for image in images if masks is None or image.image_id not in masks.errors]
    evaluation = config.evaluation
    return split_held_out(usable, evaluation.held_out_share, evaluation.held_out_max)


def _output(request: Request, seen: Survey) -> str:
    """The output folder; whether it holds another run is known once the other inputs are."""
    folder = require_lasting(request.output_dir)
    if seen.missing:
        return str(folder)
    inputs = seen.complete()
    if not refuse_other_run(folder, run_record(request, inputs)):
        return f"{folder}: a new run"
    seen.contents = unchanged_contents(folder, input_files(inputs))
    return f"{folder}: resumes the run in it"


def _device(request: Request, seen: Survey) -> tuple[str, str]:
    config = request.config
    device, resources = check_cluster(config, request.kind == "tune")
    if seen.recipe is not None and seen.recipe.is_network:
        cluster.actor_demand("mask", config.compute.mask_actors, device).require(resources)
    text = f"{device} ({resources.describe()})"
    here = cluster.local_device(config.compute)
    text += f"; this machine itself computes on {here}" if here != device else ""
    seen.notes.append(f"device: {text}")
    return device, text


def check_cluster(config: Config, searches: bool = False) -> tuple[str, cluster.Resources]:
    """The workers' device and the cluster's resources, after a check that a training fits.

    Raises:
        ClusterError: the address is wrong or does not answer, a device is missing, or the cluster
            cannot hold the workers.
    """
    compute = config.compute
    cluster.check_address(compute)
    cluster.local_device(compute)
    resources = cluster.capacity(compute)
    device = cluster.choose_device(compute, resources)
    cluster.training_demand(compute, device).require(resources)
    if searches:
        cluster.trials_demand(compute, device, compute.concurrent_trials).require(resources)
    return device, resources


def labelled_images(
    images: Path | str | None,
    labels: Path | str | None,
    classes: ClassSet,
    config: Config | None = None,
    progress: ProgressSink | None = None,
    white: float | None = None,
) -> tuple[LabelledImage, ...]:
    """Pairs to score on; empty without labels.

    Args:
        images, labels: Folders; both or neither.
        classes: What labels are mapped to.
        config: `labels_format`, `labels_classes` and `white_level` are used.
        progress: Called with lines on what was found.
        white: What is white in the images of more than 8 bits that the model is used for.

    Raises:
        DataError: only one folder is given, or `load_labelled` refuses the labels.
    """
    if images is None and labels is None:
        return ()
    both = _require_both(images, labels)
    folder = load_labelled(*both, classes, config, PairOptions(model_white=white), progress)
    for line in folder.describe(classes):
        (progress or silent)(line)
    return folder.pairs


def _require_both(
    images: Path | str | None, labels: Path | str | None
) -> tuple[Path | str, Path | str]:
    if images is None or labels is None:
        given, missing = ("labels", "images") if images is None else ("images", "labels")
        raise DataError(f"val_{given} were given without val_{missing}: give both, or neither")
    return images, labels


def run_record(request: Request, inputs: Inputs) -> dict[str, Any]:
    """What decides the result of a run: the config without `compute`, source model, images, masks."""
    science = flatten(request.config)
    record = {k: v for k, v in science.items() if not k.startswith("compute.")}
    record |= {
        "kind": request.kind,
        "inputs.source_sha256": inputs.source.sha256,
        "inputs.card": inputs.source.card.to_dict(),
        "inputs.images": len(inputs.images),
        "inputs.image_ids_sha256": hash_of_ids(inputs.images),
        "inputs.white_level": next((i.white.value for i in inputs.images if i.white), None),
        "inputs.labelled_images": len(inputs.labelled),
    }
    if inputs.recipe is not None:
        return record | {"inputs.sam_sha256": inputs.recipe.sam_sha256}
    assert inputs.masks is not None
    recipe, images = inputs.masks.recipe, inputs.images
    return record | {
        "inputs.sam_sha256": recipe.get("sam_sha256", ""),
        "inputs.masks_source": recipe.get("source", "unknown"),
        "inputs.masks_knobs": recipe.get("knobs", {}),
        "inputs.masks": inputs.masks.count(image.image_id for image in images),
        # Shards on this machine are known by their contents, see `input_files`.
        "inputs.remote_masks_sha256": hash_of_names(inputs.masks.remote_listing()),
    }


def input_files(inputs: Inputs) -> dict[str, Path]:
    """Every file whose content decides the result, by a name that stays when folders are moved."""
    files = {f"target images/{image.image_id}": image.path for image in inputs.images}
    files |= labelled_files("val", inputs.labelled)
    for shard in inputs.masks.local_shards() if inputs.masks is not None else ():
        files[f"masks/{shard.name}"] = shard
    return files


def claim_inputs(request: Request, inputs: Inputs, progress: ProgressSink) -> Path:
    """Make the request's output folder this run's own, or resume in it; see `claim_run`."""
    record, files = run_record(request, inputs), input_files(inputs)
    return claim_run(request.output_dir, record, files, inputs.contents, progress)
