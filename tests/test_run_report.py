"""The report of a finished run: its record, the images it draws, and the files it writes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sfss_ray import run_report
from sfss_ray.config import Config, flatten, override
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.data.label_formats import make_decoding
from sfss_ray.evaluation.examination import Examination, Score
from sfss_ray.masks.concept_stage import ConceptStage, ConceptSummary
from sfss_ray.masks.regions import RegionRecipe
from sfss_ray.masks.summary import MaskSummary
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.model_file import SourceModel, load_model, save_model
from sfss_ray.models.source import open_source
from sfss_ray.report.report_record import IMPROVED, WORSE, ExternalFacts, Verdict, read_record
from sfss_ray.run_report import (
    ADAPTED,
    SOURCE_ONLY,
    TEACHER,
    FinishedRun,
    MaskedRun,
    describe_run,
    images_to_draw,
    write_run_report,
)
from sfss_ray.storage.files import write_torch
from sfss_ray.train.batch_norm import read_statistics
from sfss_ray.train.launch import TrainResult
from sfss_ray.train.run_networks import BATCH_NORM_ONLY
from sfss_ray.tune.search import SearchResult, Trial

CONFIG = override(Config(), {"compute.device": "cpu", "evaluation.pictures": 2, "seed": 5})
SIZE = (32, 48)
MASKS = MaskSummary("m", "small_sam", "the shipped SAM", 4, 10, 4, 2.04, {"b": "cut", "a": "empty"})
SCORES = {
    SOURCE_ONLY: Score(miou=40.0, predicted_classes=10, class_entropy=2.0, held_out_images=3),
    ADAPTED: Score(miou=50.0, predicted_classes=9, class_entropy=1.9, held_out_images=3),
}


def network(seed: int) -> SourceModel:
    torch.manual_seed(seed)
    return SourceModel(build_network("compact", 19), "compact", CITYSCAPES_19)


@dataclass
class Prepared:
    """The parts of prepared inputs that a report reads."""

    source: object
    held_out: tuple[ImageFile, ...] = ()
    labelled: tuple[LabelledImage, ...] = ()
    store: object = None
    classes = CITYSCAPES_19

    def examination(self, config: Config) -> Examination:
        load_mask_ids = self.store.id_map if self.store else None  # pyright: ignore
        return Examination(
            self.classes, self.labelled, self.held_out, load_mask_ids, config.evaluation
        )


def masked_run(folder: Path, prepared: Prepared | None = None, user_masks=None) -> MaskedRun:
    """A run of `adapt`; `user_masks` is the store of masks that the user gave."""
    inputs = SimpleNamespace(masks=user_masks, recipe=None, region_weights=None)
    prepared = prepared or Prepared(open_source(network(0)))
    request = SimpleNamespace(kind="adapt")
    return MaskedRun(request, inputs, prepared, MASKS, folder)  # pyright: ignore[reportArgumentType]


def finished(
    run: MaskedRun, search: SearchResult | None = None, curve=(), **trained
) -> FinishedRun:
    result = TrainResult(Path("student.pt"), list(curve), 9.96, **trained)
    return FinishedRun(run, result, search, CONFIG)


def test_the_record_states_what_was_run(tmp_path):
    curve = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "agreement": 0.75}]
    run = masked_run(tmp_path)
    record = describe_run(finished(run, curve=curve), SCORES, 3.14)
    assert (record.kind, record.seed, record.network_scored) == ("adapt", 5, "student")
    assert record.step_scored == f"last ({CONFIG.train.num_steps} of {CONFIG.train.num_steps})"
    assert (record.class_set.name, record.class_set.classes) == (
        CITYSCAPES_19.name,
        CITYSCAPES_19.classes,
    )
    assert record.source_model is not None
    assert record.source_model.sha256 == open_source(network(0)).sha256
    assert record.regions is not None
    assert (record.regions.masks, record.regions.masks_per_image) == (10, 2.5)
    assert record.regions.folder is None
    assert [(error.image, error.reason) for error in record.errors] == [
        ("a", "empty"),
        ("b", "cut"),
    ]
    assert record.seconds == {"masks": 2.0, "train": 10.0, "evaluation": 3.1}
    assert record.curves[0].points == tuple(curve)
    assert record.config == flatten(CONFIG)
    assert (record.trials, record.best_trial, record.oracle) == ((), None, False)


def test_external_knowledge_is_recorded_where_it_voted(tmp_path):
    knobs = {"prompts": {"pole": ["pole", "lamp"], "void": []}, "score_thresh": 0.5}
    recipe = RegionRecipe("concepts", "sam3_concepts", "ab" * 32, knobs)
    made = ConceptSummary(ConceptStage(recipe, Path("sam3")), tmp_path / "c", 4, 31, 2.04, 1)
    run = replace(masked_run(tmp_path), concepts=made)
    record = describe_run(finished(run), SCORES, 0)
    assert record.external_knowledge == ExternalFacts(
        name="SAM 3 prompted with class names",
        path="sam3",
        sha256="ab" * 32,
        prompts=knobs["prompts"],
        score_thresh=CONFIG.masks.concept_score_thresh,
        weight=CONFIG.train.loss.concept_weight,
        images=4,
        masks=31,
    )
    assert record.seconds["concepts"] == 2.0
    no_vote = override(CONFIG, {"train.loss.concept_weight": 0.0})
    assert (
        describe_run(replace(finished(run), config=no_vote), SCORES, 0).external_knowledge is None
    )
    assert describe_run(finished(masked_run(tmp_path)), SCORES, 0).external_knowledge is None


def test_rows_hold_the_scores_and_the_agreement_of_the_training(tmp_path):
    run = masked_run(tmp_path)
    curve = [{"step": 1, "agreement": 0.5}, {"step": 2, "agreement": 0.75}]
    source, adapted = describe_run(finished(run, curve=curve), SCORES, 0).rows
    assert (source.name, source.miou, source.agreement) == (SOURCE_ONLY, 40.0, None)
    assert (adapted.name, adapted.miou, adapted.agreement) == (ADAPTED, 50.0, 0.75)
    assert (source.collapsed, adapted.collapsed) == (None, False)
    assert adapted.pixel_accuracy is None  # NaN


def test_the_step_that_was_kept_is_stated_with_its_agreement(tmp_path):
    curve = [{"step": 1, "agreement": 0.5}, {"step": 2, "agreement": 0.75}]
    run = finished(masked_run(tmp_path), curve=curve, step=1, kept="best")
    record = describe_run(run, SCORES, 0)
    assert record.step_scored == f"best (1 of {CONFIG.train.num_steps})"
    assert record.rows[1].agreement == 0.5


def test_the_verdict_compares_the_student_with_source_only(tmp_path):
    without = {SOURCE_ONLY: (40.0, 40.0, 40.0), ADAPTED: (50.0, 50.0, 50.0)}
    scores = {
        name: replace(score, labelled_images=3, leave_one_out={"miou": without[name]})
        for name, score in SCORES.items()
    }
    scores[TEACHER] = replace(SCORES[ADAPTED], miou=1.0)
    record = describe_run(finished(masked_run(tmp_path)), scores, 0)
    assert record.verdict is not None
    assert (record.verdict.word, record.verdict.used_labels) == (IMPROVED, True)
    assert [row.name for row in record.rows] == [SOURCE_ONLY, ADAPTED, TEACHER]
    assert record.rows[2].collapsed is False


@pytest.mark.parametrize(("miou", "says_so"), [(40.0, True), (30.0, True), (50.0, False)])
def test_the_verdict_says_when_not_even_the_best_student_is_better(miou, says_so, tmp_path):
    source, student = (
        Score(miou=value, labelled_images=3, leave_one_out={"miou": (value,) * 3})
        for value in (40.0, miou)
    )
    curve = [
        {"step": 1, "label_free_score": 0.5},
        {"step": 2},
        {"step": 3, "label_free_score": 0.4},
    ]
    run = finished(masked_run(tmp_path), curve=curve, step=1, kept="best")
    verdict = describe_run(run, {SOURCE_ONLY: source, ADAPTED: student}, 0).verdict
    assert verdict is not None
    ending = ", although step 1 is the best of 2 evaluations."
    assert verdict.reason.endswith(ending) == says_so


def test_baselines_have_their_curve_and_seconds(tmp_path):
    baseline = TrainResult(Path("b.pt"), [{"step": 1, "loss": 0.5}], 4.0)
    run = replace(finished(masked_run(tmp_path)), baselines={"self-training": baseline})
    record = describe_run(run, SCORES | {"self-training": SCORES[ADAPTED]}, 0)
    assert [curve.name for curve in record.curves] == [ADAPTED, "self-training"]
    assert record.seconds["self-training"] == 4.0
    assert record.answer is record.rows[1]


@pytest.mark.parametrize(("held_out", "collapsed"), [(3, True), (0, None)])
def test_a_collapse_is_judged_on_held_out_images(held_out, collapsed, tmp_path):
    student = Score(predicted_classes=1, class_entropy=0.0, held_out_images=held_out)
    scores = {**SCORES, ADAPTED: student}
    assert describe_run(finished(masked_run(tmp_path)), scores, 0).rows[1].collapsed is collapsed


@pytest.mark.parametrize(
    ("oracle", "used_for"), [(True, "choosing (oracle)"), (False, "reporting only")]
)
def test_a_search_is_recorded_and_its_use_of_labels(oracle, used_for, tmp_path):
    values = {"train.loss.temperature": 0.1, "train.loss.contrast_weight": 0.2}
    trial = Trial("trial 1", Path("t"), values | {"train.ema_momentum": 0.9}, {}, "finished")
    search = SearchResult([trial], 0, "val_miou", oracle, Path("best_config.json"))
    labelled = (LabelledImage("v", Path("v.png"), Path("v_labels.png")),)
    run = masked_run(tmp_path, Prepared(open_source(network(0)), labelled=labelled))
    record = describe_run(finished(run, search), SCORES, 0)
    assert record.best == record.trials[0]
    assert (record.score_name, record.oracle) == ("val_miou", oracle)
    assert (record.labels.given, record.labels.images) == (True, 1)
    assert record.labels.used_for == used_for


def test_masks_that_the_user_gave_are_named_with_their_folder(tmp_path):
    run = masked_run(tmp_path, user_masks=SimpleNamespace(folder="/masks"))
    regions = describe_run(finished(run), SCORES, 0).regions
    assert regions is not None
    assert regions.folder == "/masks"


def files(folder: Path, *names: str) -> tuple[ImageFile, ...]:
    """Random images."""
    rng = np.random.default_rng(0)
    for name in names:
        pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return tuple(ImageFile(name, folder / f"{name}.png") for name in names)


def test_labelled_images_are_drawn_before_held_out_ones(tmp_path):
    held_out = files(tmp_path, "a", "b", "c")
    assert [f.image_id for f in images_to_draw(Prepared(None, held_out), CONFIG)] == ["a", "c"]
    labelled = (LabelledImage("v", Path("v.png"), Path("v_labels.png")),)
    drawn = images_to_draw(Prepared(None, held_out, labelled), CONFIG)
    assert drawn == [ImageFile("v", Path("v.png"))]


def test_given_masks_are_drawn_only_over_their_own_files(tmp_path, monkeypatch):
    images = files(tmp_path, "a", "b")
    labelled = tuple(LabelledImage(f.image_id, f.path, f.path) for f in images)
    store = SimpleNamespace(id_map=lambda image_id: f"masks of {image_id}")
    run = masked_run(tmp_path, Prepared(None, (), labelled, store))
    monkeypatch.setattr(run_report, "has_masks_of", lambda _, file: file.image_id == "a")
    load_mask_ids = run_report._mask_loader(run, images, CONFIG, str)
    assert load_mask_ids("a") == "masks of a"
    assert load_mask_ids("b") is None


def test_a_report_is_written_and_scores_both_networks(tmp_path):
    held_out, lines = files(tmp_path, "a", "b", "c"), []
    ids = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) // 100 + 1
    store = SimpleNamespace(id_map=lambda _: ids)
    run = masked_run(tmp_path, Prepared(open_source(network(0)), held_out, (), store))
    student = save_model(tmp_path / "student.pt", network(1))
    trained_run = FinishedRun(run, TrainResult(student), None, CONFIG)
    record = write_run_report(trained_run, lines.append)
    assert lines == ["evaluating source-only", "evaluating adapted"]
    assert read_record(tmp_path / "report.json") == read_record_of(record)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "01_a.png",
        "02_c.png",
    ]
    assert "source-only" in (tmp_path / "report.html").read_text(encoding="utf-8")
    examination = run.prepared.examination(CONFIG)
    expected = examination.with_source(network(0).network.eval()).score(network(1).network.eval())
    adapted = record.rows[1]
    assert adapted.entropy == pytest.approx(expected.entropy)
    assert adapted.balanced_mask_information == pytest.approx(expected.balanced_mask_information)
    assert adapted.anchored_information == pytest.approx(expected.anchored_information)
    assert record.rows[0].balanced_mask_information is not None
    assert record.rows[0].anchored_information is not None


def test_every_network_of_a_run_is_scored_in_order(tmp_path):
    held_out, lines = files(tmp_path, "a", "b", "c"), []
    ids = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) // 100 + 1
    source = network(0)
    run = masked_run(
        tmp_path,
        Prepared(open_source(source), held_out, (), SimpleNamespace(id_map=lambda _: ids)),
    )
    shifted = {n: t + 1 for n, t in read_statistics(source.network).items() if "mean" in n}
    statistics = write_torch(tmp_path / "statistics.pt", shifted)
    student, teacher, baseline = (
        save_model(tmp_path / f"{seed}.pt", network(seed)) for seed in (1, 2, 3)
    )
    trained = TrainResult(student, teacher=teacher, statistics=statistics)
    baselines = {"self-training": TrainResult(baseline)}
    record = write_run_report(FinishedRun(run, trained, None, CONFIG, baselines), lines.append)
    names = [SOURCE_ONLY, BATCH_NORM_ONLY, ADAPTED, TEACHER, "self-training"]
    assert [row.name for row in record.rows] == names
    assert lines == [f"evaluating {name}" for name in names]
    adapted_statistics = network(0).network.eval()
    adapted_statistics.load_state_dict(shifted, strict=False)
    examination = run.prepared.examination(CONFIG)
    expected = [adapted_statistics, *(network(seed).network.eval() for seed in (1, 2, 3))]
    for row, other in zip(record.rows[1:], expected, strict=True):
        assert row.entropy == pytest.approx(examination.score(other).entropy), row.name
    assert len({row.entropy for row in record.rows}) == 5


def test_statistics_of_the_source_are_not_scored_twice(tmp_path):
    held_out, lines = files(tmp_path, "a"), []
    source = network(0)
    run = masked_run(tmp_path, Prepared(open_source(source), held_out))
    run.prepared.store = SimpleNamespace(id_map=lambda _: np.ones(SIZE, int))  # pyright: ignore
    statistics = write_torch(tmp_path / "statistics.pt", read_statistics(source.network))
    student = save_model(tmp_path / "student.pt", network(1))
    trained = TrainResult(student, statistics=statistics)
    record = write_run_report(FinishedRun(run, trained, None, CONFIG), lines.append)
    assert lines == ["evaluating source-only", "evaluating adapted"]
    assert replace(record.rows[1], name=SOURCE_ONLY, collapsed=None) == record.rows[0]


@pytest.mark.parametrize("word", [WORSE, IMPROVED])
def test_a_student_that_is_worse_is_marked_in_its_file(word, tmp_path, monkeypatch):
    verdict = Verdict(word, "It is.")
    monkeypatch.setattr(run_report, "judge", lambda *_: verdict)
    store = SimpleNamespace(id_map=lambda _: np.ones(SIZE, int))
    run = masked_run(tmp_path, Prepared(open_source(network(0)), store=store))
    student = save_model(tmp_path / "student.pt", network(1))
    trained = FinishedRun(run, TrainResult(student), None, CONFIG)
    record = write_run_report(trained, str)
    assert record.verdict == verdict
    facts = load_model(student).facts
    assert facts == ({"verdict": WORSE, "verdict_reason": "It is."} if word == WORSE else {})


def read_record_of(record):
    """A record as it comes back from its file."""
    return type(record).from_json(record.to_json())


def test_class_groups_and_unmatched_classes_are_recorded(tmp_path):
    grouped = open_source(network(0), class_groups="camvid-11")
    prepared = Prepared(grouped)
    prepared.classes = grouped.classes  # pyright: ignore[reportAttributeAccessIssue]
    record = describe_run(finished(masked_run(tmp_path, prepared)), SCORES, 0)
    assert record.class_set.name == "camvid-11"
    assert record.class_set.groups is not None
    members = {group.name: group.members for group in record.class_set.groups}
    assert members["car"] == ("car", "truck", "bus", "train")
    assert (record.class_set.dropped, record.labels.note) == ((), None)
    assert read_record_of(record) == record

    # Without groups, truck is predicted on 30 % of the pixels of CamVid's labels.
    decoding = make_decoding("camvid", CITYSCAPES_19)
    labelled = (LabelledImage("v", Path("v.png"), Path("v_labels.png"), decoding),)
    share = tuple({"road": 0.7, "truck": 0.3}.get(name, 0.0) for name in CITYSCAPES_19.classes)
    scores = SCORES | {SOURCE_ONLY: Score(miou=40.0, labelled_share=share)}
    run = masked_run(tmp_path, Prepared(open_source(network(0)), labelled=labelled))
    record = describe_run(finished(run), scores, 0)
    assert record.class_set.groups is None
    assert "truck 30.0 % of the pixels" in (record.labels.note or "")
    assert "class_groups camvid-11" in (record.labels.note or "")
