import pytest
import torch
from train_samples import CLASSES, assert_states_close, labelled, write_dataset

from sfss_ray.config import Config, override
from sfss_ray.data.class_sets import class_set_of
from sfss_ray.errors import TrainingError
from sfss_ray.train.pretraining import PretrainingTask, pretrain
from sfss_ray.train.run_state import LocalRun, load_state, read_progress


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return labelled(write_dataset(tmp_path_factory.mktemp("pretraining"), 4))


def task(images, **changes) -> PretrainingTask:
    values = {
        "pretrain.num_steps": 30,
        "pretrain.batch_size": 2,
        "pretrain.checkpoint_every": 3,
        "pretrain.augment.crop_size": [48, 48],
        "pretrain.augment.scale_range": [1.0, 1.2],
        "pretrain.optim.learning_rate": 3e-3,
    } | {f"pretrain.{name.replace('__', '.')}": value for name, value in changes.items()}
    return PretrainingTask(images, class_set_of(CLASSES), override(Config(seed=2), values))


def test_loss_falls(images, tmp_path):
    pretrain(task(images), LocalRun(tmp_path))
    losses = [r["loss"] for r in read_progress(tmp_path)]
    assert losses[0] > 1.2
    assert sum(losses[-3:]) / 3 < 0.5 * losses[0]


class Interrupted(Exception):
    """Stands for a machine that goes away."""


def interrupt(metrics):
    if metrics["step"] == 3:
        raise Interrupted


def test_interrupted_and_resumed_is_uninterrupted(images, tmp_path):
    short = task(images, num_steps=5)
    pretrain(short, LocalRun(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        pretrain(short, LocalRun(tmp_path / "parts", on_report=interrupt))
    assert load_state(tmp_path / "parts")["step"] == 3
    torch.manual_seed(99)
    pretrain(short, LocalRun(tmp_path / "parts"))
    assert load_state(tmp_path / "parts")["step"] == 5
    assert_states_close(tmp_path / "whole", tmp_path / "parts", tolerance=1e-6)


def test_watching_changes_nothing(images, tmp_path):
    short = task(images, num_steps=4, checkpoint_every=2)
    seen = []

    def watch(network):
        assert not any(m.training for m in network.modules())
        return {"miou": float(len(seen) or seen.append(network) or 0)}

    pretrain(short, LocalRun(tmp_path / "watched"), watch)
    pretrain(short, LocalRun(tmp_path / "alone"))
    assert_states_close(tmp_path / "watched", tmp_path / "alone")


def test_a_loss_of_nan_is_told_with_its_step(images, tmp_path):
    def poison(network):
        torch.nn.init.constant_(network.classifier.bias, torch.nan)
        return {}

    with pytest.raises(
        TrainingError, match=r"loss is nan and .*step 4 .*checkpoint of step 3 is kept"
    ):
        pretrain(task(images), LocalRun(tmp_path), poison)
    assert load_state(tmp_path)["step"] == 3
