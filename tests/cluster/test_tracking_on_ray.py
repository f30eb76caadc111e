"""What a tracker receives from real runs on a cluster."""

import pytest
from tracked_runs import Recorder

import sfss_ray
from sfss_ray.config import override
from sfss_ray.masks.generate import generate_masks
from sfss_ray.train.launch import pretrain_source, train_student

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_cluster")]


@pytest.fixture(scope="module")
def masks(streets, tiny_config, shared_cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    generate_masks(streets / "target" / "images", folder, config=tiny_config, progress=str)
    return folder


def steps_of(recorder: Recorder, metric: str) -> list[int]:
    logged = [call[1:] for call in recorder.calls if call[0] == "log_metrics"]
    return [step for metrics, step in logged if metric in metrics]


def test_an_adaptation_sends_masks_steps_and_report(source_model, streets, tiny_config, tmp_path):
    recorder, failing, lines = Recorder(), Recorder("log_metrics"), []
    result = sfss_ray.adapt(
        source_model,
        streets / "target" / "images",
        tmp_path / "night",
        config=tiny_config,
        trackers=[recorder, failing],
        progress=lines.append,
    )
    assert recorder.calls[0][:2] == ("start", "night")
    assert steps_of(recorder, "masks/masks") == [0]
    points = result.report.curves[0].points
    assert steps_of(recorder, "train/loss") == [point["step"] for point in points]
    score, _ = recorder.numbers()["report/adapted/mask_information"]
    assert score == pytest.approx(result.metrics["adapted"]["mask_information"])
    artifacts = [call[1] for call in recorder.calls if call[0] == "log_artifact"]
    assert [path.name for path in artifacts[:2]] == ["report.json", "report.html"]
    assert all(path.exists() for path in artifacts)
    assert recorder.calls[-1] == ("finish", False)
    assert sum("Recorder failed" in line for line in lines) == 1


def test_a_search_sends_its_trials(source_model, streets, tiny_config, tmp_path):
    recorder = Recorder()
    result = sfss_ray.tune_hyperparameters(
        source_model,
        streets / "target" / "images",
        tmp_path / "run",
        config=override(tiny_config, {"tune.num_trials": 2}),
        trackers=[recorder],
        progress=str,
    )
    assert steps_of(recorder, "trials/temperature") == [1, 2]
    names = {name.partition("/")[0] for name in recorder.numbers()}
    assert {trial.folder.name for trial in result.search.trials} <= names
    assert steps_of(recorder, "train/loss")


def test_trainings_alone_send_their_steps(source_model, streets, masks, tiny_config, tmp_path):
    config = override(
        tiny_config,
        {
            "pretrain.num_steps": 2,
            "pretrain.checkpoint_every": 2,
            "pretrain.batch_size": 2,
            "pretrain.augment.crop_size": [64, 128],
        },
    )
    val, target = streets / "val", streets / "target" / "images"
    options = {"config": config, "progress": str}
    pretraining, training = Recorder(), Recorder()
    labelled = val / "images", val / "labels"
    pretrain_source(*labelled, tmp_path / "source", trackers=[pretraining], **options)
    folder = tmp_path / "student"
    train_student(source_model, target, masks, folder, trackers=[training], **options)
    for recorder in (pretraining, training):
        assert steps_of(recorder, "train/loss")
        assert recorder.calls[-1] == ("finish", False)
