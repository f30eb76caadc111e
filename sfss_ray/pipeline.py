"""The whole job: masks -> training (or a search) -> evaluation -> report, in one output folder."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfss_ray.config import Config, override
from sfss_ray.inputs.check import Inputs, Request, check_inputs, claim_inputs
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.existing import has_masks_of, summarise_existing
from sfss_ray.masks.generate import mask_images
from sfss_ray.masks.regions import SamType
from sfss_ray.masks.summary import MaskSummary, summarise
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import SourceLike
from sfss_ray.run_report import ADAPTED, SOURCE_ONLY, describe_run, draw_strips, shown_images
from sfss_ray.runtime import cluster
from sfss_ray.runtime.progress import ProgressSink, print_line
from sfss_ray.train.launch import TrainResult, run_training
from sfss_ray.train.training_inputs import Prepared, prepare_training
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
    request = Request(
        "adapt",
        source_model,
        target_images,
        output_dir,
        config or Config(),
        card=card,
        sam_checkpoint=sam_checkpoint,
        sam_type=sam_type,
        masks=masks,
        val_images=val_images,
        val_labels=val_labels,
    )
    inputs, folder = _begin(request, progress)
    with cluster.connected(request.config.compute):
        job = _with_masks(request, inputs, folder, progress)
        trained = run_training(job.prepared, folder, request.config, progress)
        report = _report(job, trained, None, request.config)
    return AdaptResult(folder, trained.model, report, architecture=inputs.source.architecture)


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
    request = Request(
        "tune",
        source_model,
        target_images,
        output_dir,
        config or Config(),
        card=card,
        sam_checkpoint=sam_checkpoint,
        sam_type=sam_type,
        masks=masks,
        val_images=val_images,
        val_labels=val_labels,
    )
    inputs, folder = _begin(request, progress)
    with cluster.connected(request.config.compute):
        job = _with_masks(request, inputs, folder, progress)
        search = run_search(job.prepared, folder, request.config, progress)
        best = override(request.config, search.trials[search.best].values)
        progress(f"training with the best values: {search.trials[search.best].name}")
        trained = run_training(job.prepared, folder, best, progress)
        report = _report(job, trained, search, best)
    architecture = inputs.source.architecture
    return TuneResult(folder, trained.model, report, search, architecture=architecture)


@dataclass(frozen=True)
class _Job:
    """A run whose masks are there."""

    request: Request
    inputs: Inputs
    prepared: Prepared
    masks: MaskSummary
    folder: Path
    progress: ProgressSink


def _begin(request: Request, progress: ProgressSink) -> tuple[Inputs, Path]:
    """Check all inputs, and claim the output folder."""
    inputs = check_inputs(request)
    for note in inputs.notes:
        progress(note)
    return inputs, claim_inputs(request, inputs, progress)


def _with_masks(request: Request, inputs: Inputs, folder: Path, progress: ProgressSink) -> _Job:
    """Masks are made, or those that were given are used."""
    images = inputs.images
    if inputs.masks is not None:
        store = inputs.masks
        summary = summarise_existing(store, images)
        progress(f"masks: {summary.masks} masks of {len(images)} images by {summary.source} given")
    else:
        assert inputs.recipe is not None
        started, place = time.monotonic(), folder / "masks"
        made = mask_images(
            images, place, inputs.recipe, inputs.region_weights, request.config, progress
        )
        store = MaskStore(place)
        seconds = time.monotonic() - started
        summary = summarise(store, images, inputs.recipe.source, made, seconds)
    prepared = prepare_training(inputs, store, request.config).placed(folder)
    return _Job(request, inputs, prepared, summary, folder, progress)


def _report(
    job: _Job, trained: TrainResult, search: SearchResult | None, config: Config
) -> dict[str, Any]:
    """Score source-only and adapted side by side, draw, write report.json and report.html."""
    from sfss_ray.models.model_file import load_model
    from sfss_ray.report.page import write_report

    started, prepared = time.monotonic(), job.prepared
    device, source = cluster.local_device(config.compute), prepared.source
    networks = {
        SOURCE_ONLY: source.load(device).network,
        ADAPTED: load_model(trained.model, device, module=source.architecture).network,
    }
    examination = prepared.examination(config)
    scores = {}
    for name, network in networks.items():
        job.progress(f"evaluating {name}")
        scores[name] = examination.score(network)
        if name == SOURCE_ONLY:
            examination = examination.beside(scores[name])
            scores[name] = examination.completed(scores[name], network)
    strips = _strips(job, networks, config)
    seconds = {"masks": job.masks.seconds, "train": trained.seconds}
    seconds["evaluation"] = time.monotonic() - started
    report = describe_run(
        job.request.kind, prepared, job.masks, trained, search, config, scores, seconds
    )
    if job.inputs.masks is not None:
        report["regions"]["folder"] = job.inputs.masks.folder
    write_report(job.folder, report, strips)
    return report


def _strips(job: _Job, networks: dict[str, Segmenter], config: Config) -> list[Strip]:
    """Pictures with masks: of labelled images they are made here, unless masks are given."""
    prepared, store = job.prepared, job.prepared.store
    shown = shown_images(prepared, config)
    if not prepared.labelled or not shown:
        return draw_strips(prepared, shown, networks, store.id_map, config)
    if job.inputs.recipe is None:
        known = {file.image_id for file in shown if has_masks_of(store, file)}
        return draw_strips(
            prepared, shown, networks, lambda i: store.id_map(i) if i in known else None, config
        )
    place, weights = job.folder / "masks_of_pictures", job.inputs.region_weights
    mask_images(shown, place, job.inputs.recipe, weights, config, job.progress)
    return draw_strips(prepared, shown, networks, MaskStore(place).id_map, config)
