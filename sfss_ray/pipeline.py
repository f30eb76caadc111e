"""The whole job: masks -> training (or a search) -> evaluation -> report, in one output folder."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfss_ray import cluster
from sfss_ray.config import Config, override
from sfss_ray.data.folders import ImageFile, LabelledImage, list_images, split_held_out
from sfss_ray.errors import DataError
from sfss_ray.evidence import ADAPTED, SOURCE_ONLY, describe_run, draw_strips, shown_images
from sfss_ray.masks.generate import generate_masks, mask_images
from sfss_ray.masks.given import describe_masks, is_of_file, open_masks
from sfss_ray.masks.regions import RegionRecipe, SamType, make_recipe
from sfss_ray.masks.store import MaskStore
from sfss_ray.masks.summary import MaskSummary
from sfss_ray.models.card import CardLike
from sfss_ray.models.carried import check_travels
from sfss_ray.models.source import Source, SourceLike, open_source
from sfss_ray.progress import ProgressSink, print_line
from sfss_ray.run_folder import claim
from sfss_ray.train.launch import TrainResult, run_training
from sfss_ray.train.prepared import (
    Prepared,
    check_stage,
    labelled_images,
    prepare_training,
    record_of_masks,
    run_record,
)
from sfss_ray.tune.scores import require_held_out, score_name
from sfss_ray.tune.search import SearchResult, run_search

if TYPE_CHECKING:
    from torch import nn

    from sfss_ray.models.segmenter import Segmenter
    from sfss_ray.report.pictures import Strip


@dataclass(frozen=True)
class AdaptResult:
    """The adapted model and its evidence."""

    output_dir: Path
    student_path: Path
    """Model file of the student at its last step; `torch.load(..., weights_only=True)` reads it."""
    report: dict[str, Any]
    """The content of report.json."""
    architecture: nn.Module | None = field(default=None, repr=False, kw_only=True)
    """The source model's, without weights, where it was the user's own module."""

    @functools.cached_property
    def student(self) -> Segmenter:
        """The adapted network, on the CPU, in eval mode; every function that takes a model takes it."""
        from sfss_ray.models.model_file import load_model

        return load_model(self.student_path, module=self.architecture).network

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Scores by row name: source-only and adapted; mIoU in percent, None without labels."""
        return {row["name"]: row for row in self.report["rows"]}

    @property
    def report_html(self) -> Path:
        """The page for people."""
        return self.output_dir / "report.html"

    @property
    def masks_dir(self) -> Path:
        """The Parquet shards of masks: the run's own, or those it was given."""
        given = self.report["regions"].get("folder")
        return Path(given) if given else self.output_dir / "masks"


@dataclass(frozen=True)
class TuneResult(AdaptResult):
    """An adapted model trained with the best values of a search, and the search."""

    search: SearchResult

    @property
    def best_config(self) -> dict[str, float]:
        """The best values by dotted name, as in best_config.json."""
        return self.search.trials[self.search.best].values


@dataclass(frozen=True)
class _Inputs:
    """Arguments that were checked before a cluster starts."""

    source: Source
    target_images: Path
    output_dir: Path
    images: list[ImageFile]
    labelled: tuple[LabelledImage, ...]
    val_images: Path | str | None
    val_labels: Path | str | None
    sam_checkpoint: Path | str | None
    sam_type: SamType
    recipe: RegionRecipe | None
    """How masks are made; None where they are given."""
    region_weights: Path | None
    given: MaskSummary | None
    """The masks that were given."""


def adapt(
    source_model: SourceLike,
    target_images: Path | str,
    output_dir: Path | str,
    *,
    card: CardLike | None = None,
    sam_checkpoint: Path | str | None = None,
    sam_type: SamType = "auto",
    masks: Path | str | None = None,
    val_images: Path | str | None = None,
    val_labels: Path | str | None = None,
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> AdaptResult:
    """Adapt a source model to unlabelled target images, and show what that brought.

    Args:
        source_model: A checkpoint of any known family (told by its keys), or a model file made by
            `pretrain_source`, `save_model` or a training; in Python also a source model in memory
            (`load_source_model`, `wrap_model`).
        target_images: Folder of unlabelled images.
        output_dir: The run's folder; run again with the same arguments to go on after an
            interruption. Finished stages are not repeated.
        card: Entries that replace what the checkpoint's family says of its images (mean, std,
            channel_order, value_range, align_corners, classes): JSON file, mapping or Card.
        sam_checkpoint: SAM weights; without them `config.masks.regions` says where regions
            come from.
        sam_type: The SAM that the checkpoint must hold; auto tells it from the weights.
        masks: Folder of masks of the target images that is there already (`generate_masks`,
            `import_masks`); then none are made, and `config.masks` is not used.
        val_images: Labelled images, used to report mIoU alone.
        val_labels: Their label maps of train ids.
        config: Every knob; see `sfss_ray.Config`.
        progress: Called with a line of text as work goes on.

    Returns:
        The student, the scores before and after, and the paths of what was written.

    Raises:
        SfssError: bad input, said in one line before a cluster starts; see `sfss_ray.errors`.
    """
    config = config or Config()
    inputs = _check(
        open_source(source_model, card, config.source_weights),
        target_images,
        output_dir,
        (sam_checkpoint, sam_type, masks),
        (val_images, val_labels),
        config,
    )
    folder = claim(output_dir, _record("adapt", inputs, config))
    with cluster.connected(config.compute):
        summary = _masks(inputs, folder, config, progress)
        prepared = _prepare(inputs, folder, config)
        trained = run_training(prepared, folder, config, progress)
        report = _report(
            "adapt", inputs, prepared, summary, trained, None, folder, config, progress
        )
    return AdaptResult(folder, trained.model, report, architecture=prepared.source.architecture)


def tune_hyperparameters(
    source_model: SourceLike,
    target_images: Path | str,
    output_dir: Path | str,
    *,
    card: CardLike | None = None,
    sam_checkpoint: Path | str | None = None,
    sam_type: SamType = "auto",
    masks: Path | str | None = None,
    val_images: Path | str | None = None,
    val_labels: Path | str | None = None,
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> TuneResult:
    """Search temperature, contrast_weight and ema_momentum, then adapt with the best of them.

    Masks are made once; every trial trains a student on them; the best values go to
    best_config.json and into a last training, whose student is the result. Without labels trials
    are compared by balanced_mask_information. With labels they are compared by mIoU on them, which
    no source-free user has: the output then says `oracle`.

    Arguments, results and errors are those of `adapt`; `config.tune` says how long and how wide.
    """
    config = config or Config()
    inputs = _check(
        open_source(source_model, card, config.source_weights),
        target_images,
        output_dir,
        (sam_checkpoint, sam_type, masks),
        (val_images, val_labels),
        config,
    )
    _check_score(inputs, config)
    folder = claim(output_dir, _record("tune", inputs, config))
    with cluster.connected(config.compute):
        summary = _masks(inputs, folder, config, progress)
        prepared = _prepare(inputs, folder, config)
        search = run_search(prepared, folder, config, progress)
        best = override(config, search.trials[search.best].values)
        progress(f"training with the best values: {search.trials[search.best].name}")
        trained = run_training(prepared, folder, best, progress)
        report = _report("tune", inputs, prepared, summary, trained, search, folder, best, progress)
    architecture = prepared.source.architecture
    return TuneResult(folder, trained.model, report, search, architecture=architecture)


def _check(
    source: Source,
    target_images: Path | str,
    output_dir: Path | str,
    regions: tuple[Path | str | None, SamType, Path | str | None],
    val: tuple[Path | str | None, Path | str | None],
    config: Config,
) -> _Inputs:
    """Everything that can be known to be wrong before work begins.

    regions: SAM checkpoint, its type, and the folder of masks that are there.
    """
    images = list_images(target_images)
    labelled = labelled_images(*val, source.classes, config)
    sam_checkpoint, sam_type, masks = regions
    given, recipe, weights = None, None, None
    if masks is None:
        recipe, weights = make_recipe(config.masks, sam_checkpoint, sam_type)
    elif sam_checkpoint is not None:
        raise DataError(
            "masks and a SAM checkpoint were given: give masks that are there, or a checkpoint to make"
            " some"
        )
    else:
        given = describe_masks(open_masks(masks, images), images)
    check_stage(config.train, config.compute)
    check_travels(source)
    cluster.local_device(config.compute)
    cluster.check_address(config.compute)
    return _Inputs(
        source,
        Path(target_images),
        Path(output_dir),
        images,
        labelled,
        *val,
        sam_checkpoint,
        sam_type,
        recipe,
        weights,
        given,
    )


def _check_score(inputs: _Inputs, config: Config) -> None:
    """ConfigError when trials could not be compared; the search looks again once masks are there."""
    share, most = config.evaluation.held_out_share, config.evaluation.held_out_max
    _, held_out = split_held_out(inputs.images, share, most)
    require_held_out(score_name(config.tune, bool(inputs.labelled)), len(held_out))


def _record(kind: str, inputs: _Inputs, config: Config) -> dict[str, Any]:
    record = {"kind": kind} | run_record(config, inputs.source, inputs.images, inputs.labelled)
    if inputs.recipe is not None:
        return record | {"inputs.sam_sha256": inputs.recipe.sam_sha256}
    assert inputs.given is not None
    given = inputs.given
    return record | record_of_masks(MaskStore(given.folder).recipe, given.masks)


def _masks(inputs: _Inputs, folder: Path, config: Config, progress: ProgressSink) -> MaskSummary:
    if inputs.given is not None:
        given = inputs.given
        progress(f"masks: {given.masks} of {given.images} images by {given.source} are given")
        return given
    return generate_masks(
        inputs.target_images,
        folder / "masks",
        sam_checkpoint=inputs.sam_checkpoint,
        sam_type=inputs.sam_type,
        config=config,
        progress=progress,
    )


def _prepare(inputs: _Inputs, folder: Path, config: Config) -> Prepared:
    prepared = prepare_training(
        inputs.source,
        inputs.target_images,
        inputs.given.folder if inputs.given else folder / "masks",
        inputs.val_images,
        inputs.val_labels,
        config,
    )
    return prepared.placed(folder)


def _report(
    kind: str,
    inputs: _Inputs,
    prepared: Prepared,
    masks: MaskSummary,
    trained: TrainResult,
    search: SearchResult | None,
    folder: Path,
    config: Config,
    progress: ProgressSink,
) -> dict[str, Any]:
    """Score source-only and adapted side by side, draw, write report.json and report.html."""
    from sfss_ray.models.model_file import load_model
    from sfss_ray.report.page import write_report

    started = time.monotonic()
    device, source = cluster.local_device(config.compute), prepared.source
    networks = {
        SOURCE_ONLY: source.load(device).network,
        ADAPTED: load_model(trained.model, device, module=source.architecture).network,
    }
    examination = prepared.examination(config)
    scores = {}
    for name, network in networks.items():
        progress(f"evaluating {name}")
        scores[name] = examination.score(network)
        if name == SOURCE_ONLY:
            examination = examination.beside(scores[name])
            scores[name] = examination.completed(scores[name], network)
    strips = _strips(inputs, prepared, networks, folder, config, progress)
    seconds = {"masks": masks.seconds, "train": trained.seconds}
    seconds["evaluation"] = time.monotonic() - started
    report = describe_run(kind, prepared, masks, trained, search, config, scores, seconds)
    if inputs.given is not None:
        report["regions"]["folder"] = str(inputs.given.folder)
    write_report(folder, report, strips)
    return report


def _strips(
    inputs: _Inputs,
    prepared: Prepared,
    networks: dict[str, Segmenter],
    folder: Path,
    config: Config,
    progress: ProgressSink,
) -> list[Strip]:
    """Pictures with masks: of labelled images they are made here, unless masks are given."""
    shown = shown_images(prepared, config)
    store = MaskStore(prepared.masks)
    if not prepared.labelled or not shown:
        return draw_strips(prepared, shown, networks, store.id_map, config)
    if inputs.recipe is None:
        known = {file.image_id for file in shown if is_of_file(store, file)}
        return draw_strips(
            prepared, shown, networks, lambda i: store.id_map(i) if i in known else None, config
        )
    place = folder / "masks_of_pictures"
    mask_images(shown, place, inputs.recipe, inputs.region_weights, config, progress)
    return draw_strips(prepared, shown, networks, MaskStore(place).id_map, config)
