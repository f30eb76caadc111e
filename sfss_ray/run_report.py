"""The report of a finished run: its record, and pictures of what both networks predict."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfss_ray.config import Config, flatten
from sfss_ray.data.folders import ImageFile, evenly_spread
from sfss_ray.evaluation.label_free import lost_variety
from sfss_ray.inputs.check import Inputs, Request
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.existing import has_masks_of
from sfss_ray.masks.generate import mask_images
from sfss_ray.masks.summary import MaskSummary
from sfss_ray.report.report_record import (
    ClassSetFacts,
    Curve,
    ImageError,
    LabelFacts,
    MaskFacts,
    RunRecord,
    ScoreRow,
    SourceModelFacts,
    TargetFacts,
)
from sfss_ray.runtime import cluster
from sfss_ray.runtime.progress import ProgressSink
from sfss_ray.train.launch import TrainResult
from sfss_ray.train.training_inputs import Prepared
from sfss_ray.tune.search import SearchResult
from sfss_ray.tune.search_record import trial_rows
from sfss_ray.version import __version__

if TYPE_CHECKING:
    import numpy as np

    from sfss_ray.evaluation.examination import Examination, Score
    from sfss_ray.models.segmenter import Segmenter
    from sfss_ray.report.pictures import Strip

SOURCE_ONLY, ADAPTED = "source-only", "adapted"


@dataclass(frozen=True)
class MaskedRun:
    """A run whose masks exist."""

    request: Request
    inputs: Inputs
    prepared: Prepared
    masks: MaskSummary
    folder: Path
    """The output folder."""


@dataclass(frozen=True)
class FinishedRun:
    """A run whose student is trained."""

    run: MaskedRun
    trained: TrainResult
    search: SearchResult | None
    config: Config
    """Of the training, with the best values of a search."""


def write_run_report(finished: FinishedRun, progress: ProgressSink) -> RunRecord:
    """Score source-only and adapted, draw pictures, write report.json and report.html."""
    from sfss_ray.models.model_file import load_model
    from sfss_ray.report.page import write_report

    started, config, run = time.monotonic(), finished.config, finished.run
    device, source = cluster.local_device(config.compute), run.prepared.source
    student = load_model(finished.trained.model, device, module=source.architecture)
    networks = {SOURCE_ONLY: source.load(device).network, ADAPTED: student.network}
    scores = _score_networks(networks, run.prepared.examination(config), progress)
    files = images_to_draw(run.prepared, config)
    load_mask_ids = _mask_loader(run, files, config, progress)
    strips = draw_strips(run.prepared, files, networks, load_mask_ids, config)
    record = describe_run(finished, scores, time.monotonic() - started)
    write_report(run.folder, record, strips)
    return record


def _score_networks(
    networks: dict[str, Segmenter], examination: Examination, progress: ProgressSink
) -> dict[str, Score]:
    """Score source-only, then adapted.

    The balanced score needs the source model's class shares, so source-only is completed after its
    first scoring.
    """
    scores = {}
    for name, network in networks.items():
        progress(f"evaluating {name}")
        scores[name] = examination.score(network)
        if name == SOURCE_ONLY:
            examination = examination.with_source(scores[name])
            scores[name] = examination.add_balanced_score(scores[name], network)
    return scores


def _mask_loader(
    run: MaskedRun, files: Sequence[ImageFile], config: Config, progress: ProgressSink
) -> Callable[[str], np.ndarray | None]:
    """Return a function that loads the masks of the images to draw.

    Held-out images have masks in the run's store. Labelled images are other files, so masks are
    made for them. Where the user gave the masks, only files that are in their store have any.
    """
    store = run.prepared.store
    if not run.prepared.labelled or not files:
        return store.id_map
    if run.inputs.recipe is None:
        masked_ids = {file.image_id for file in files if has_masks_of(store, file)}
        return lambda image_id: store.id_map(image_id) if image_id in masked_ids else None
    folder, weights = run.folder / "masks_of_pictures", run.inputs.region_weights
    mask_images(files, folder, run.inputs.recipe, weights, config, progress)
    return MaskStore(folder).id_map


def describe_run(
    finished: FinishedRun, scores: dict[str, Score], evaluation_seconds: float
) -> RunRecord:
    """Return the record of a run.

    Args:
        finished: The run.
        scores: Scores of the source model and of the student, by row name.
        evaluation_seconds: Wall time of scoring and drawing.
    """
    run, config, search = finished.run, finished.config, finished.search
    prepared, curve = run.prepared, finished.trained.curve
    seconds = {"masks": run.masks.seconds, "train": finished.trained.seconds}
    seconds["evaluation"] = evaluation_seconds
    return RunRecord(
        title=f"{prepared.source.label} adapted to {run.masks.images} images",
        kind=run.request.kind,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        class_set=ClassSetFacts(prepared.classes.name, prepared.classes.classes),
        network_scored="student",
        step_scored=f"last ({config.train.num_steps} of {config.train.num_steps})",
        seed=config.seed,
        source_model=SourceModelFacts(
            path=str(prepared.source.origin),
            sha256=prepared.source.sha256,
            network=prepared.source.network,
            card=prepared.source.card.to_dict(),
        ),
        regions=_mask_facts(run),
        target=TargetFacts(images=run.masks.images, held_out=len(prepared.held_out)),
        labels=_label_facts(run, oracle=search is not None and search.oracle),
        rows=_score_rows(scores, curve),
        trials=trial_rows(search) if search else (),
        best_trial=search.best if search else None,
        score_name=search.score_name if search else None,
        oracle=search.oracle if search else False,
        curves=(Curve(ADAPTED, tuple(curve)),),
        errors=tuple(ImageError(i, reason) for i, reason in sorted(run.masks.errors.items())),
        seconds={stage: round(duration, 1) for stage, duration in seconds.items()},
        config=flatten(config),
    )


def _mask_facts(run: MaskedRun) -> MaskFacts:
    masks, store = run.masks, run.inputs.masks
    folder = str(store.folder) if store is not None else None
    per_image = round(masks.masks / max(masks.images, 1), 1)
    return MaskFacts(masks.source, masks.note, masks.images, masks.masks, per_image, folder)


def _label_facts(run: MaskedRun, oracle: bool) -> LabelFacts:
    num_labelled = len(run.prepared.labelled)
    used_for = "choosing (oracle)" if oracle else "reporting only"
    return LabelFacts(bool(num_labelled), num_labelled, used_for)


def _score_rows(scores: dict[str, Score], curve: list[dict[str, Any]]) -> tuple[ScoreRow, ...]:
    """Return the rows of source-only and adapted.

    The agreement with the teacher comes from the last evaluation of the training, because the
    student's file has no teacher in it.
    """
    measured: dict[str, dict[str, Any]] = {n: score.as_dict() for n, score in scores.items()}
    measured[ADAPTED]["agreement"] = curve[-1].get("agreement") if curve else None
    if scores[ADAPTED].held_out_images:
        collapsed = lost_variety(scores[ADAPTED].variety, scores[SOURCE_ONLY].variety)
        measured[ADAPTED]["collapsed"] = collapsed
    return tuple(ScoreRow(name=name, **values) for name, values in measured.items())


def images_to_draw(prepared: Prepared, config: Config) -> list[ImageFile]:
    """Choose `evaluation.pictures` images, evenly spread: labelled ones if any, else held-out ones."""
    labelled = [ImageFile(item.image_id, item.path, item.white) for item in prepared.labelled]
    return evenly_spread(labelled or list(prepared.held_out), config.evaluation.pictures)


def draw_strips(
    prepared: Prepared,
    files: Sequence[ImageFile],
    networks: dict[str, Segmenter],
    load_mask_ids: Callable[[str], np.ndarray | None],
    config: Config,
) -> list[Strip]:
    """Predict some images with both networks.

    Args:
        prepared: The run's inputs; labels are drawn where it has them.
        files: Images to draw.
        networks: Network by row name.
        load_mask_ids: image_id -> (H, W) mask ids, None if unknown.
        config: Its `evaluation` says how images are predicted.
    """
    from sfss_ray.evaluation.examination import predict_probabilities
    from sfss_ray.report.pictures import Strip

    labelled = {item.image_id: item for item in prepared.labelled}
    strips = []
    for file in files:
        image = file.read()
        predictions = {
            name: predict_probabilities(network, image, config.evaluation).argmax(0).astype("uint8")
            for name, network in networks.items()
        }
        item = labelled.get(file.image_id)
        labels = item.labels() if item else None
        mask_ids = load_mask_ids(file.image_id)
        strips.append(Strip(file.image_id, image, mask_ids, predictions, labels))
    return strips
