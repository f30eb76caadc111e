"""A whole run in one output folder: masks, training or search, evaluation, report."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sfss_ray.config import Config, override
from sfss_ray.data.group_files import ClassGroupsLike
from sfss_ray.inputs.check import check_inputs
from sfss_ray.inputs.record import claimed_run
from sfss_ray.inputs.request import Inputs, Request
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.existing import summarise_existing
from sfss_ray.masks.generate import mask_images
from sfss_ray.masks.regions import SamType
from sfss_ray.masks.summary import MaskSummary, summarise
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import SourceLike
from sfss_ray.report.report_record import RunRecord, Verdict
from sfss_ray.run_report import FinishedRun, MaskedRun, write_run_report
from sfss_ray.runtime import cluster
from sfss_ray.runtime.progress import ProgressSink, print_line
from sfss_ray.runtime.run_claim import RunClaim
from sfss_ray.storage.places import Place, address_of, to_place
from sfss_ray.tracking.run_tracking import RunTracking, track_run
from sfss_ray.tracking.tracker import TrackerLike, check_trackers
from sfss_ray.train.baseline import BASELINE_NAME, train_baseline
from sfss_ray.train.launch import TrainResult, run_training
from sfss_ray.train.training_inputs import prepare_training, provide_concepts
from sfss_ray.tune.search import SearchResult, run_search
from sfss_ray.tune.search_record import trial_rows

if TYPE_CHECKING:
    from torch import nn

    from sfss_ray.models.segmenter import Segmenter


@dataclass(frozen=True)
class AdaptResult:
    """The adapted model, its scores and its report."""

    output_dir: Place
    student_path: Place
    """Model file of the student; `torch.load(..., weights_only=True)` reads it."""
    report: RunRecord
    """The content of report.json; `report.to_json()` gives plain values."""
    architecture: nn.Module | None = field(default=None, repr=False, kw_only=True)
    """The source model's module without weights, where it was the user's own module."""

    @functools.cached_property
    def student(self) -> Segmenter:
        """The adapted network on the CPU, in eval mode; functions that take a model accept it."""
        from sfss_ray.models.model_file import load_model

        return load_model(self.student_path, module=self.architecture).network

    @property
    def verdict(self) -> Verdict | None:
        """Whether the student is better than the source model; None only for records of old runs."""
        return self.report.verdict

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Scores by row name (source-only, BatchNorm-only, adapted, teacher, and self-training where
        the config asks for baselines); mIoU in percent, None without labels."""
        return {row["name"]: row for row in self.report.to_json()["rows"]}

    @property
    def report_html(self) -> Place:
        """The report for people."""
        return self.output_dir / "report.html"

    @property
    def masks_dir(self) -> Place:
        """Folder of the Parquet mask shards: the run's own, or the one that was given."""
        folder = self.report.regions.folder if self.report.regions else None
        return to_place(folder) if folder else self.output_dir / "masks"


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
    target_images: Place | str,
    output_dir: Place | str,
    *,
    card: CardLike | None = None,
    class_groups: ClassGroupsLike | None = None,
    sam_checkpoint: Place | str | None = None,
    sam_type: SamType = "auto",
    masks: Place | str | None = None,
    val_images: Place | str | None = None,
    val_labels: Place | str | None = None,
    config: Config | None = None,
    trackers: Sequence[TrackerLike] = (),
    progress: ProgressSink = print_line,
) -> AdaptResult:
    """Adapt a source model to unlabelled target images, and report scores before and after.

    Args:
        source_model: A checkpoint of any known family, or a model file; in Python also a model.
        target_images: Folder of unlabelled images.
        output_dir: The run's folder or address, such as s3://bucket/run. The same call again resumes it.
        card: Entries that replace the preprocessing known for the checkpoint's family (mean, std,
            channel_order, value_range, align_corners, classes): JSON file, mapping or Card.
        class_groups: Groups of outputs, such as camvid-11; or a JSON or YAML file, or a mapping.
        sam_checkpoint: SAM weights; without them `config.masks.regions` selects the region source.
        sam_type: Architecture of the SAM checkpoint; auto recognises it by its weights.
        masks: Folder of existing masks (`generate_masks`, `import_masks`); none are made then.
        val_images: Labelled images, used to report mIoU only.
        val_labels: Their label maps, see `config.labels_format`.
        config: Every knob; see `sfss_ray.Config`.
        trackers: Experiment trackers: tensorboard, mlflow, wandb; in Python also a `Tracker`.
        progress: Called with a line of text as the work proceeds.

    Returns:
        The student, the scores before and after, the verdict, and the paths of the files written.

    Raises:
        SfssError: an input is bad; raised before a cluster starts, see `sfss_ray.errors`.
    """
    request = Request(
        "adapt",
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
    with _start_run(request, trackers, progress) as run:
        on_record, config = run.tracking.log_record, run.inputs.config
        trained = run_training(run.prepared, run.folder, config, progress, on_record)
        record = _finish(run, trained, None, config, progress)
    architecture = run.inputs.source.architecture
    return AdaptResult(run.folder, trained.model, record, architecture=architecture)


def tune_hyperparameters(
    source_model: SourceLike,
    target_images: Place | str,
    output_dir: Place | str,
    *,
    card: CardLike | None = None,
    class_groups: ClassGroupsLike | None = None,
    sam_checkpoint: Place | str | None = None,
    sam_type: SamType = "auto",
    masks: Place | str | None = None,
    val_images: Place | str | None = None,
    val_labels: Place | str | None = None,
    config: Config | None = None,
    trackers: Sequence[TrackerLike] = (),
    progress: ProgressSink = print_line,
) -> TuneResult:
    """Search temperature, contrast_weight and ema_momentum, then adapt with the best values.

    Masks are made once, and every trial trains a student on them. The best values are written to
    best_config.json and used for a last training, whose student is the result. Without labels
    trials are compared by anchored_information. With labels they are compared by mIoU, which
    no source-free user has: the output then says `oracle`.

    Arguments, results and errors are those of `adapt`; `config.tune` sets the size of the search.
    """
    request = Request(
        "tune",
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
    with _start_run(request, trackers, progress) as run:
        on_record, config = run.tracking.log_record, run.inputs.config
        search = run_search(run.prepared, run.folder, config, progress, on_record)
        run.tracking.log_trials(trial_rows(search))
        best = search.trials[search.best]
        config = override(config, best.values)
        progress(f"training with the best values: {best.name}")
        trained = run_training(run.prepared, run.folder, config, progress, on_record)
        record = _finish(run, trained, search, config, progress)
    architecture = run.inputs.source.architecture
    return TuneResult(run.folder, trained.model, record, search, architecture=architecture)


@dataclass(frozen=True)
class _TrackedRun(MaskedRun):
    """A run whose masks exist, with its trackers."""

    tracking: RunTracking
    claim: RunClaim


@contextlib.contextmanager
def _start_run(
    request: Request, trackers: Sequence[TrackerLike], progress: ProgressSink
) -> Iterator[_TrackedRun]:
    """Check all inputs, claim the output folder, connect to the cluster and provide masks."""
    check_trackers(trackers)
    inputs = check_inputs(request)
    for note in inputs.notes:
        progress(note)
    with (
        claimed_run(request, inputs, progress) as claim,
        cluster.connected(inputs.config.compute),
        track_run(trackers, claim.folder, inputs.config, progress) as tracking,
    ):
        folder = claim.folder
        store, summary = _provide_masks(request, inputs, folder, progress)
        tracking.log_masks(summary)
        prepared = prepare_training(inputs, store, inputs.config).placed(folder)
        concepts = provide_concepts(inputs, folder, progress)
        prepared = prepared.with_concepts(concepts)
        claim.require()
        yield _TrackedRun(
            request,
            inputs,
            prepared,
            summary,
            folder,
            tracking=tracking,
            concepts=concepts,
            claim=claim,
        )


def _provide_masks(
    request: Request, inputs: Inputs, folder: Place, progress: ProgressSink
) -> tuple[MaskStore, MaskSummary]:
    """Make masks of the target images, or use those that the user gave."""
    images = inputs.images
    if inputs.masks is not None:
        summary = summarise_existing(inputs.masks, images)
        progress(f"masks: {summary.masks} masks of {len(images)} images by {summary.source} given")
        return inputs.masks, summary
    assert inputs.recipe is not None
    started, masks_dir = time.monotonic(), folder / "masks"
    num_masked = mask_images(
        images,
        masks_dir,
        inputs.recipe,
        inputs.region_weights,
        inputs.config,
        progress,
    )
    store = MaskStore(address_of(masks_dir))
    seconds = time.monotonic() - started
    return store, summarise(store, images, inputs.recipe.source, num_masked, seconds)


def _finish(
    run: _TrackedRun,
    trained: TrainResult,
    search: SearchResult | None,
    config: Config,
    progress: ProgressSink,
) -> RunRecord:
    """Train the baselines that the config asks for, write the report and send it to the trackers."""
    run.claim.require()
    baselines = {}
    if config.report.baselines:
        trained_baseline = train_baseline(
            run.prepared, run.folder, config, progress, run.tracking.log_record
        )
        baselines[BASELINE_NAME] = trained_baseline
    record = write_run_report(FinishedRun(run, trained, search, config, baselines), progress)
    run.tracking.log_report(record, run.folder)
    return record
