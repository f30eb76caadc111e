"""Stage 2 from Python, with the workers replaced by a run in this process."""

import dataclasses

import pytest
import torch
from train_samples import CLASSES, sharp_source, small_config, write_dataset
from training_in_process import train_in_process

from sfss_ray.config import override
from sfss_ray.errors import ConfigError, ResumeError
from sfss_ray.evaluation import verdict
from sfss_ray.inputs.check import check_inputs
from sfss_ray.inputs.request import Request
from sfss_ray.models.model_file import load_model
from sfss_ray.train.launch import pretrain_source, run_training, save_network, train_student
from sfss_ray.train.run_state import load_state
from sfss_ray.train.training_inputs import prepare_training

CONFIG = override(
    small_config(num_steps=2, evaluate_every=1),
    {
        "compute.device": "cpu",
        "pretrain.num_steps": 2,
        "pretrain.batch_size": 2,
        "pretrain.checkpoint_every": 1,
        "pretrain.augment.crop_size": [48, 48],
        "evaluation.held_out_share": 0.0,
    },
)
SHARE = 8 / (8 + 6)
"""Of the source model in the students: the data set has six images."""
HELD_OUT = {"evaluation.held_out_share": 0.3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_dataset(tmp_path_factory.mktemp("launch"))
    sharp_source(root / "source.pt")
    return root


@pytest.fixture(autouse=True)
def fits(monkeypatch) -> list:
    """Train in this process; the list has the folder of each training."""
    return train_in_process(monkeypatch)


def train(root, output_dir, **arguments):
    inputs = root / "source.pt", root / "images", root / "masks", output_dir
    return train_student(*inputs, **{"config": CONFIG, "progress": str} | arguments)


def test_a_student_is_trained_saved_and_scored(root, tmp_path):
    validation = {"val_images": root / "images", "val_labels": root / "labels"}
    result = train(root, tmp_path / "run", **validation)
    assert result.model == tmp_path / "run" / "student.pt"
    assert [record["step"] for record in result.curve] == [1, 2]
    assert all("val_miou" in record for record in result.curve)
    assert result.seconds > 0
    student = load_state(tmp_path / "run" / "train")["student"]
    saved = load_model(result.model)
    source = load_model(root / "source.pt").network.state_dict()
    for name, weight in saved.network.state_dict().items():
        if weight.is_floating_point():
            expected = student[f"segmenter.{name}"].lerp(source[name], SHARE)
            torch.testing.assert_close(weight, expected, msg=name)
    assert saved.facts["source_share"] == SHARE
    assert saved.facts["steps"] == 2
    assert saved.facts["seed"] == CONFIG.seed
    assert saved.facts["source"] == "source.pt"


def test_a_training_says_last_that_nothing_judged_its_student(root, tmp_path):
    lines: list[str] = []
    train(root, tmp_path / "run", progress=lines.append)
    assert lines[-1].startswith("no verdict: the student was not compared with its source model")


def test_the_teacher_and_the_first_statistics_lie_beside_the_checkpoints(root, tmp_path):
    result = train(root, tmp_path / "run")
    assert (result.step, result.kept) == (2, "last")
    assert result.teacher == tmp_path / "run" / "train" / "teacher.pt"
    teacher, state = load_model(result.teacher), load_state(tmp_path / "run" / "train")
    for name, weight in teacher.network.state_dict().items():
        assert torch.equal(weight, state["teacher"][f"segmenter.{name}"]), name
    assert teacher.facts["network_kept"] == "teacher, last step"
    statistics = torch.load(result.statistics, weights_only=True)
    source = load_model(root / "source.pt").network.state_dict()
    assert set(statistics) <= set(source)
    assert not torch.equal(
        statistics["body.stem.1.running_mean"], source["body.stem.1.running_mean"]
    )


def test_the_best_student_is_kept_if_the_config_says_so(root, tmp_path, monkeypatch):
    scores = iter([0.5, 0.2, 0.1])
    best = {"train.keep": "best", "train.num_steps": 3, "train.source_share": 0.0}
    monkeypatch.setattr(verdict, "label_free_score", lambda score: next(scores))
    result = train(root, tmp_path / "run", config=override(CONFIG, best | HELD_OUT))
    assert (result.step, result.kept) == (1, "best")
    state = load_state(tmp_path / "run" / "train")
    assert (state["step"], state["best"]["step"]) == (3, 1)
    assert result.teacher is not None
    for path, name in ((result.model, "student"), (result.teacher, "teacher")):
        saved = load_model(path)
        assert saved.facts["network_kept"] == f"{name}, best step"
        assert saved.facts["steps"] == 1
        for key, weight in saved.network.state_dict().items():
            assert torch.equal(weight, state["best"][name][f"segmenter.{key}"]), key
    again = train(root, tmp_path / "run", config=override(CONFIG, best | HELD_OUT))
    assert (again.step, again.kept) == (1, "best")


def test_a_finished_student_is_not_trained_again(root, tmp_path, fits):
    first = train(root, tmp_path / "run")
    again = train(root, tmp_path / "run")
    assert fits == [tmp_path / "run"]
    assert again.curve == first.curve
    with pytest.raises(ResumeError, match=r"train\.num_steps: 2 -> 3"):
        train(root, tmp_path / "run", config=override(CONFIG, {"train.num_steps": 3}))


def test_the_white_level_of_the_images_is_written_into_the_student(root, tmp_path):
    inputs = check_inputs(
        Request(
            "train",
            root / "source.pt",
            root / "images",
            tmp_path / "run",
            CONFIG,
            masks=root / "masks",
        )
    )
    assert inputs.masks is not None
    prepared = prepare_training(inputs, inputs.masks, CONFIG)
    (tmp_path / "claimed").mkdir()
    run_training(prepared, tmp_path / "claimed", CONFIG, str)
    state = load_state(tmp_path / "claimed" / "train")
    assert "white_level" not in load_model(tmp_path / "claimed" / "student.pt").facts

    class White:
        value = 4095.0

    deep = dataclasses.replace(prepared.training[0], white=White())  # pyright: ignore
    prepared = dataclasses.replace(prepared, training=(deep, *prepared.training[1:]))
    save_network(state, "student", prepared, CONFIG, tmp_path / "deep.pt")
    assert load_model(tmp_path / "deep.pt").facts["white_level"] == 4095.0


def pretrain(root, output_dir, **arguments):
    defaults = {"classes": ",".join(CLASSES), "config": CONFIG, "progress": str}
    return pretrain_source(root / "images", root / "labels", output_dir, **defaults | arguments)


def test_a_source_model_is_trained_and_saved(root, tmp_path, fits):
    validation = {"val_images": root / "images", "val_labels": root / "labels"}
    result = pretrain(root, tmp_path / "run", **validation)
    assert result.model == tmp_path / "run" / "source.pt"
    assert [record["step"] for record in result.curve] == [1, 2]
    assert all("val_miou" in record for record in result.curve)
    assert (tmp_path / "run" / "curve.json").exists()
    model = load_model(result.model)
    assert model.classes.classes == CLASSES
    assert model.facts["images"] == 6
    assert model.facts["steps"] == 2
    pretrain(root, tmp_path / "run", **validation)
    assert fits == [tmp_path / "run"]


def test_a_source_model_without_validation_labels_is_not_scored(root, tmp_path):
    assert "val_miou" not in pretrain(root, tmp_path / "run").curve[-1]


def test_a_pretraining_is_refused_before_it_starts(root, tmp_path, fits):
    unknown = override(CONFIG, {"pretrain.network": "resnet_18"})
    with pytest.raises(ConfigError, match="resnet_18"):
        pretrain(root, tmp_path / "run", config=unknown)
    with pytest.raises(ConfigError, match="batch_size"):
        pretrain(root, tmp_path / "run", config=override(CONFIG, {"compute.num_workers": 3}))
    assert fits == []
    assert not (tmp_path / "run").exists()
