"""The report of a finished run: scores of its networks, the verdict, the record, and pictures."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sfss_ray.config import Config, flatten
from sfss_ray.data.folders import ImageFile, evenly_spread
from sfss_ray.evaluation.label_free import lost_variety
from sfss_ray.evaluation.unmatched import unmatched_note
from sfss_ray.evaluation.verdict import judge
from sfss_ray.inputs.check import Inputs, Request
from sfss_ray.masks.bank.schema import CONCEPTS
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.concept_stage import ConceptSummary
from sfss_ray.masks.existing import has_masks_of
from sfss_ray.masks.generate import mask_images
from sfss_ray.masks.regions import NOTES
from sfss_ray.masks.summary import MaskSummary
from sfss_ray.report.report_record import (
    IMPROVED,
    ClassSetFacts,
    Curve,
    ExternalFacts,
    GroupFacts,
    ImageError,
    LabelFacts,
    MaskFacts,
    RunRecord,
    ScoreRow,
    SourceModelFacts,
    TargetFacts,
    Verdict,
)
from sfss_ray.runtime import cluster
from sfss_ray.runtime.progress import ProgressSink
from sfss_ray.storage.places import Place, address_of, to_place
from sfss_ray.train.launch import TrainResult
from sfss_ray.train.run_networks import (
    ADAPTED,
    SOURCE_ONLY,
    TEACHER,
    Examined,
    RunNetworks,
    examine_networks,
)
from sfss_ray.train.student_watch import KEEP_SCORE
from sfss_ray.train.training_inputs import Prepared
from sfss_ray.tune.search import SearchResult
from sfss_ray.tune.search_record import trial_rows
from sfss_ray.version import __version__

if TYPE_CHECKING:
    import numpy as np

    from sfss_ray.evaluation.examination import Score
    from sfss_ray.report.pictures import Strip


@dataclass(frozen=True)
class MaskedRun:
    """A run whose masks exist."""

    request: Request
    inputs: Inputs
    prepared: Prepared
    masks: MaskSummary
    folder: Place
    """The output folder."""
    concepts: ConceptSummary | None = field(default=None, kw_only=True)
    """Masks with classes, where the config names a network for them."""


@dataclass(frozen=True)
class FinishedRun:
    """A run whose student is trained."""

    run: MaskedRun
    trained: TrainResult
    search: SearchResult | None
    config: Config
    """Of the training, with the best values of a search."""
    baselines: Mapping[str, TrainResult] = field(default_factory=dict)
    """Trainings of other methods by row name."""


def write_run_report(finished: FinishedRun, progress: ProgressSink) -> RunRecord:
    """Score all networks of a run, judge its student, draw pictures, write report.json and report.html.

    A student that is worse than its source model is marked in its file.
    """
    from sfss_ray.models.model_mark import mark_model
    from sfss_ray.report.page import write_report

    started, config, run = time.monotonic(), finished.config, finished.run
    files = images_to_draw(run.prepared, config)
    examined = _examine(finished, files, progress)
    scores = examined.scores
    load_mask_ids = _mask_loader(run, files, config, progress)
    strips = draw_strips(run.prepared, files, examined.predictions, load_mask_ids)
    record = describe_run(finished, scores, time.monotonic() - started)
    if record.verdict is not None and record.verdict.is_worse:
        mark_model(finished.trained.model, record.verdict.word, record.verdict.reason)
    write_report(run.folder, record, strips)
    return record


def _examine(finished: FinishedRun, files: Sequence[ImageFile], progress: ProgressSink) -> Examined:
    """Score all networks and predict the images to draw, on a GPU of the cluster if there is one."""
    config, trained = finished.config, finished.trained
    models = {ADAPTED: trained.model}
    if trained.teacher is not None:
        models[TEACHER] = trained.teacher
    models |= {name: result.model for name, result in finished.baselines.items()}
    task = RunNetworks(finished.run.prepared, config, trained.statistics, models, files)
    lines_and_result = cluster.stream(examine_networks, task, config.compute, progress)
    examined = None
    for item in lines_and_result:
        if isinstance(item, str):
            progress(item)
        else:
            examined = item
    assert examined is not None, "the last item is the result"
    return examined


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
    return MaskStore(address_of(folder)).id_map


def describe_run(
    finished: FinishedRun, scores: dict[str, Score], evaluation_seconds: float
) -> RunRecord:
    """Return the record of a run.

    Args:
        finished: The run.
        scores: Scores of all networks by row name, source-only first.
        evaluation_seconds: Wall time of scoring and drawing.
    """
    run, config, search = finished.run, finished.config, finished.search
    prepared, trained = run.prepared, finished.trained
    seconds = {"masks": run.masks.seconds, "train": trained.seconds}
    if run.concepts is not None:
        seconds["concepts"] = run.concepts.seconds
    seconds |= {name: result.seconds for name, result in finished.baselines.items()}
    seconds["evaluation"] = evaluation_seconds
    curves = {ADAPTED: trained} | dict(finished.baselines)
    return RunRecord(
        verdict=_judge_student(scores, trained, prepared.classes.classes),
        title=f"{prepared.source.label} adapted to {run.masks.images} images",
        kind=run.request.kind,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=__version__,
        class_set=_class_facts(prepared),
        network_scored="student",
        step_scored=_describe_step(trained, config),
        seed=config.seed,
        source_model=SourceModelFacts(
            path=str(prepared.source.origin),
            sha256=prepared.source.sha256,
            network=prepared.source.network,
            card=prepared.source.card.to_dict(),
        ),
        regions=_mask_facts(run),
        external_knowledge=_external_facts(run, config),
        target=TargetFacts(images=run.masks.images, held_out=len(prepared.held_out)),
        labels=_label_facts(run, scores, oracle=search is not None and search.oracle),
        rows=_score_rows(scores, trained),
        trials=trial_rows(search) if search else (),
        best_trial=search.best if search else None,
        score_name=search.score_name if search else None,
        oracle=search.oracle if search else False,
        curves=tuple(Curve(name, tuple(result.curve)) for name, result in curves.items()),
        errors=tuple(ImageError(i, reason) for i, reason in sorted(run.masks.errors.items())),
        seconds={stage: round(duration, 1) for stage, duration in seconds.items()},
        config=flatten(config),
    )


def _class_facts(prepared: Prepared) -> ClassSetFacts:
    classes, groups = prepared.classes, prepared.source.class_groups
    if groups is None:
        return ClassSetFacts(classes.name, classes.classes)
    facts = tuple(GroupFacts(name, members) for name, members in groups.groups)
    return ClassSetFacts(classes.name, classes.classes, facts, groups.dropped)


def _mask_facts(run: MaskedRun) -> MaskFacts:
    masks, store = run.masks, run.inputs.masks
    folder = str(to_place(store.folder)) if store is not None else None  # without a secret
    per_image = round(masks.masks / max(masks.images, 1), 1)
    return MaskFacts(masks.source, masks.note, masks.images, masks.masks, per_image, folder)


def _external_facts(run: MaskedRun, config: Config) -> ExternalFacts | None:
    """Return what voted besides source model and masks."""
    concepts, weight = run.concepts, config.train.loss.concept_weight
    if concepts is None or weight == 0:
        return None
    stage = concepts.stage
    return ExternalFacts(
        NOTES[CONCEPTS],
        path=str(stage.checkpoint),
        sha256=stage.recipe.sam_sha256,
        prompts={name: list(texts) for name, texts in stage.prompts.items()},
        score_thresh=config.masks.concept_score_thresh,
        weight=weight,
        images=concepts.images,
        masks=concepts.masks,
    )


def _label_facts(run: MaskedRun, scores: dict[str, Score], oracle: bool) -> LabelFacts:
    num_labelled = len(run.prepared.labelled)
    used_for = "choosing (oracle)" if oracle else "reporting only"
    note = _unmatched_line(run.prepared, scores[SOURCE_ONLY])
    return LabelFacts(bool(num_labelled), num_labelled, used_for, note or None)


def _unmatched_line(prepared: Prepared, source_only: Score) -> str:
    """Say which classes the source model predicts on the labelled images and the labels cannot show."""
    decoding = prepared.labelled[0].decoding if prepared.labelled else None
    if decoding is None or not source_only.labelled_share:
        return ""
    percents = [100 * share for share in source_only.labelled_share]
    return unmatched_note(prepared.classes, decoding.label_classes, percents)


def _judge_student(
    scores: dict[str, Score], trained: TrainResult, classes: Sequence[str]
) -> Verdict:
    """Judge the student. If it is the best of several and still no better, the reason says so."""
    verdict = judge(scores[SOURCE_ONLY], scores[ADAPTED], classes)
    if trained.kept != "best" or verdict.word == IMPROVED:
        return verdict
    count = sum(KEEP_SCORE in point for point in trained.curve)
    note = f"although step {trained.step} is the best of {count} evaluations"
    return dataclasses.replace(verdict, reason=f"{verdict.reason.removesuffix('.')}, {note}.")


def _describe_step(trained: TrainResult, config: Config) -> str:
    """Return which step was scored, such as "best (80 of 160)"."""
    num_steps = config.train.num_steps
    return f"{trained.kept} ({trained.step or num_steps} of {num_steps})"


def _score_rows(scores: dict[str, Score], trained: TrainResult) -> tuple[ScoreRow, ...]:
    """Return the rows of all networks.

    The agreement of student and teacher was measured when the training evaluated them.
    """
    measured: dict[str, dict[str, Any]] = {n: score.as_dict() for n, score in scores.items()}
    points = [point for point in trained.curve if trained.step in (None, point["step"])]
    measured[ADAPTED]["agreement"] = points[-1].get("agreement") if points else None
    source = scores[SOURCE_ONLY]
    for name, score in scores.items():
        if name != SOURCE_ONLY and score.held_out_images:
            measured[name]["collapsed"] = lost_variety(score.variety, source.variety)
    return tuple(ScoreRow(name=name, **values) for name, values in measured.items())


def images_to_draw(prepared: Prepared, config: Config) -> list[ImageFile]:
    """Choose `evaluation.pictures` images, evenly spread: labelled ones if any, else held-out ones."""
    labelled = [ImageFile(item.image_id, item.path, item.white) for item in prepared.labelled]
    return evenly_spread(labelled or list(prepared.held_out), config.evaluation.pictures)


def draw_strips(
    prepared: Prepared,
    files: Sequence[ImageFile],
    predictions: Sequence[dict[str, np.ndarray]],
    load_mask_ids: Callable[[str], np.ndarray | None],
) -> list[Strip]:
    """Return images with their masks, predictions and labels, to be drawn side by side.

    Args:
        prepared: The run's inputs; labels are drawn where it has them.
        files: Images to draw.
        predictions: For each image the (H, W) classes by row name.
        load_mask_ids: image_id -> (H, W) mask ids, None if unknown.
    """
    from sfss_ray.report.pictures import Strip

    labelled = {item.image_id: item for item in prepared.labelled}
    strips = []
    for file, classes in zip(files, predictions, strict=True):
        item = labelled.get(file.image_id)
        labels = item.labels() if item else None
        mask_ids = load_mask_ids(file.image_id)
        strips.append(Strip(file.image_id, file.read(), mask_ids, classes, labels))
    return strips
