"""Stages 2 and 3 and the whole job on a real cluster."""

import json
import re
import shutil

import pytest
import torch

import sfss_ray
from sfss_ray.config import load_config, override
from sfss_ray.data import folders, pairing
from sfss_ray.errors import ResumeError
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.generate import generate_masks
from sfss_ray.train.launch import pretrain_source, train_student

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_cluster")]


@pytest.fixture(scope="module")
def masks(streets, tiny_config, shared_cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    generate_masks(streets / "target" / "images", folder, config=tiny_config, progress=str)
    return folder


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def flat(state):
    return torch.cat([state[name].double().flatten() for name in sorted(state)])


def test_two_workers_learn_what_one_does(source_model, streets, masks, tiny_config, tmp_path):
    base = override(tiny_config, {"evaluation.held_out_share": 0.2})
    students = []
    for workers in (1, 2):
        config = override(base, {"compute.num_workers": workers})
        folder = tmp_path / str(workers)
        target = streets / "target" / "images"
        result = train_student(source_model, target, masks, folder, config=config, progress=str)
        assert [point["step"] for point in result.curve] == [3, 6]
        assert "mask_information" in result.curve[-1]
        students.append(weights(result.model))
    # AdamW turns a gradient of rounding size into a step of full size, so single weights may differ;
    # all together they are where one worker took them.
    source = flat(weights(source_model))
    one, two = map(flat, students)
    moved = (one - source).norm()
    assert moved > 0
    assert (one - two).norm() < 0.01 * moved


def test_a_finished_run_is_kept_and_another_refused(
    source_model, streets, masks, tiny_config, tmp_path
):
    target = streets / "target" / "images"
    first = train_student(source_model, target, masks, tmp_path, config=tiny_config, progress=str)
    stamp = first.model.stat().st_mtime_ns
    train_student(source_model, target, masks, tmp_path, config=tiny_config, progress=str)
    assert first.model.stat().st_mtime_ns == stamp
    other = override(tiny_config, {"train.loss.temperature": 0.5})
    with pytest.raises(ResumeError, match=r"train.loss.temperature: 0.1 -> 0.5"):
        train_student(source_model, target, masks, tmp_path, config=other, progress=str)
    others = tmp_path.parent / "other_masks"
    generate_masks(
        target,
        others,
        config=override(tiny_config, {"masks.felzenszwalb_scale": 400.0}),
        progress=str,
    )
    with pytest.raises(ResumeError, match=r"inputs.masks"):
        train_student(source_model, target, others, tmp_path, config=tiny_config, progress=str)


def test_pretraining_makes_a_model_file(streets, tiny_config, tmp_path):
    config = override(
        tiny_config,
        {
            "pretrain.num_steps": 4,
            "pretrain.checkpoint_every": 2,
            "pretrain.batch_size": 2,
            "pretrain.augment.crop_size": [64, 128],
        },
    )
    val = streets / "val"
    result = pretrain_source(val / "images", val / "labels", tmp_path, config=config, progress=str)
    assert result.model.name == "source.pt"
    score = sfss_ray.evaluate_model(result.model, val / "images", val / "labels")
    assert 0 <= score.miou <= 100


def test_adapt_leaves_model_report_and_pictures(source_model, streets, tiny_config, tmp_path):
    val, lines = streets / "val", []
    result = sfss_ray.adapt(
        source_model,
        streets / "target" / "images",
        tmp_path / "run",
        val_images=val / "images",
        val_labels=val / "labels",
        config=tiny_config,
        progress=lines.append,
    )
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert list(result.metrics) == ["source-only", "BatchNorm-only", "adapted", "teacher"]
    assert result.verdict == result.report.verdict
    assert result.verdict is not None
    assert report["verdict"]["word"] == result.verdict.word
    assert result.verdict.used_labels
    assert report["labels"]["used_for"] == "reporting only"
    assert report["regions"]["source"] == "felzenszwalb"
    assert "felzenszwalb" in result.report_html.read_text()
    assert len(list((tmp_path / "run" / "pictures").glob("*.png"))) == 2
    assert result.student(torch.rand(1, 3, 64, 128)).logits.shape[1] == 19
    assert any(line.startswith("masks 12/12") for line in lines)
    assert any(line.startswith("train 6/6") for line in lines)


def test_a_run_with_baselines_and_the_best_student(
    source_model, streets, masks, tiny_config, tmp_path
):
    config = override(tiny_config, {"report.baselines": True, "train.keep": "best"})

    def adapt():
        images = streets / "target" / "images"
        return sfss_ray.adapt(
            source_model, images, tmp_path / "run", masks=masks, config=config, progress=str
        )

    result = adapt()
    rows = ["source-only", "BatchNorm-only", "adapted", "teacher", "self-training"]
    assert list(result.metrics) == rows
    assert [curve.name for curve in result.report.curves] == ["adapted", "self-training"]
    baseline = sfss_ray.load_model(tmp_path / "run" / "self_training" / "student.pt")
    scores = {
        p["step"]: p["label_free_score"] for p in result.report.curves[0].points if "entropy" in p
    }
    facts = result.student.facts
    assert scores[facts["steps"]] == max(scores.values())
    step = f"best ({facts['steps']} of {config.train.num_steps})"
    assert (facts["network_kept"], result.report.step_scored) == ("student, best step", step)
    assert baseline.facts["steps"] in scores
    assert adapt().report.rows == result.report.rows


def test_adaptation_takes_masks_that_are_there(
    source_model, streets, masks, tiny_config, tmp_path, monkeypatch
):
    """Imported ones too; labelled images of other folders have no masks then.

    No folder is listed twice.
    """
    target, given = streets / "target" / "images", tmp_path / "given"
    store, source = MaskStore(masks), tmp_path / "sam"
    source.mkdir()
    for image_id in store.ids():
        row = store.load(image_id)
        records = [
            mask
            | {
                "segmentation": {"size": [row["height"], row["width"]], "counts": mask["counts"]},
                "point_coords": [mask["point"]],
            }
            for mask in row["masks"]
        ]
        (source / f"{image_id}.json").write_text(json.dumps(records))
    sfss_ray.import_masks(source, target, given, config=tiny_config, progress=str)
    ours, val, lines = MaskStore(given), streets / "val", []
    assert all((ours.id_map(i) == store.id_map(i)).all() for i in store.ids())

    def adapt(folder, config=tiny_config):
        return sfss_ray.adapt(
            source_model,
            target,
            tmp_path / "run",
            masks=folder,
            val_images=val / "images",
            val_labels=val / "labels",
            config=config,
            progress=lines.append,
        )

    listed, walk_images = [], folders.walk_images
    for module in (folders, pairing):
        monkeypatch.setattr(
            module, "walk_images", lambda *args: listed.append(args[0]) or walk_images(*args)
        )
    result = adapt(given)
    assert sorted(listed) == sorted([target, val / "images", val / "labels"])
    assert result.masks_dir == given
    assert not (tmp_path / "run" / "masks").exists()
    assert not (tmp_path / "run" / "masks_of_pictures").exists()
    regions = json.loads((tmp_path / "run" / "report.json").read_text())["regions"]
    assert (regions["source"], regions["folder"]) == ("imported", str(given))
    assert (regions["images"], regions["masks"]) == (12, store.num_masks)
    assert f"masks: {store.num_masks} masks of 12 images by imported given" in lines
    assert str(given) in result.report_html.read_text()
    assert adapt(given).metrics == result.metrics
    with pytest.raises(ResumeError, match="holds another run"):
        adapt(masks)
    with pytest.raises(ResumeError, match="holds another run"):
        adapt(None)


@pytest.mark.parametrize(("workers", "labelled"), [(1, False), (2, True)])
def test_a_search_picks_its_best_and_can_be_repeated(
    source_model, streets, tiny_config, tmp_path, workers, labelled
):
    # With the statistics of its source, a network of random weights predicts one class everywhere.
    knobs = {"compute.num_workers": workers, "train.batch_norm": "target"}
    config = override(tiny_config, {"tune.num_trials": 2} | knobs)
    val = streets / "val"
    labels = {"val_images": val / "images", "val_labels": val / "labels"} if labelled else {}
    lines: list[str] = []

    def search():
        return sfss_ray.tune_hyperparameters(
            source_model,
            streets / "target" / "images",
            tmp_path / "run",
            config=config,
            progress=lines.append,
            **labels,
        )

    result = search()
    assert sum(bool(re.match(r"trial-\w+ \d+/6\b", line)) for line in lines) >= 2
    trials = result.search.trials
    assert len(trials) == 2
    expected = "val_miou" if labelled else "anchored_information"
    assert result.search.score_name == expected
    for row in (*result.report.trials, result.report.answer):
        for name in ("mask_information", "agreement", "entropy", "neighbourhood_density"):
            assert getattr(row, name) is not None
        assert row.anchored_information > 0
        assert not row.collapsed
    assert result.search.oracle is labelled
    assert result.report.labels.used_for.startswith("choosing" if labelled else "report")
    best = max((t for t in trials if t.status == "finished"), key=lambda t: t.score)
    assert result.best_config == best.values
    written = load_config(tmp_path / "run" / "best_config.json", config)
    assert written.train.loss.temperature == best.values["train.loss.temperature"]
    assert search().best_config == best.values

    if workers > 1:  # the same again, three times as long
        return

    # What a driver leaves that was killed before Tune knew of the trials' last steps.
    (tmp_path / "run" / "trials" / "results.json").unlink()
    shutil.rmtree(tmp_path / "run" / "trials" / "ray")
    again = {trial.folder: trial for trial in search().search.trials}
    for trial in trials:
        if trial.status == "finished":
            assert again[trial.folder].status == "finished"
            assert again[trial.folder].metrics["step"] == config.train.num_steps
            assert again[trial.folder].score == trial.score
