"""Short pretrainings of a tiny data set in this process."""

from dataclasses import replace

import pytest
import torch
from train_samples import CLASSES, assert_states_close, labelled, write_dataset

from sfss_ray.config import Config, override
from sfss_ray.data.class_sets import class_set_of
from sfss_ray.errors import TrainingError
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.model_file import SourceModel, save_model
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
    """Stands for a machine that stops."""


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


def test_scores_of_the_watch_change_nothing(images, tmp_path):
    short = task(images, num_steps=4, checkpoint_every=2)

    def watch(network):
        assert not any(m.training for m in network.modules())
        return {"miou": float(torch.rand(()))}

    pretrain(short, LocalRun(tmp_path / "watched"), watch)
    pretrain(short, LocalRun(tmp_path / "alone"))
    assert_states_close(tmp_path / "watched", tmp_path / "alone")
    assert all("miou" in record for record in read_progress(tmp_path / "watched"))


def test_a_loss_of_nan_is_reported_with_its_step(images, tmp_path):
    def poison(network):
        torch.nn.init.constant_(network.classifier.bias, torch.nan)
        return {}

    with pytest.raises(
        TrainingError, match=r"loss is nan and .*step 4 .*checkpoint of step 3 is kept"
    ):
        pretrain(task(images), LocalRun(tmp_path), poison)
    assert load_state(tmp_path)["step"] == 3


def test_an_accumulated_batch_trains_as_the_whole_batch(images, tmp_path):
    plain = {"num_steps": 2, "batch_size": 4, "optim__optimizer": "sgd"}
    frozen = {"network": "compact", "augment__scale_range": [1.0, 1.0]}
    for parts in (1, 2):
        pretrain(task(images, **plain, **frozen, accumulate=parts), LocalRun(tmp_path / str(parts)))
    whole, accumulated = (read_progress(tmp_path / str(parts))[-1] for parts in (1, 2))
    # BatchNorm normalises each part by itself, so the losses are close, not equal.
    assert accumulated["loss"] == pytest.approx(whole["loss"], rel=0.2)


def test_a_pretraining_can_start_from_a_model_file(images, tmp_path):
    network = build_network("compact", len(CLASSES))
    start = save_model(
        tmp_path / "start.pt", SourceModel(network, "compact", class_set_of(CLASSES))
    )
    rate = 1e-9  # weights hardly move
    first = replace(task(images, num_steps=1, optim__learning_rate=rate), start=start)
    pretrain(first, LocalRun(tmp_path / "run"))
    after = load_state(tmp_path / "run")["student"]
    for name, weight in network.named_parameters():
        torch.testing.assert_close(after[name], weight.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("keep", [False, True])
def test_batch_norm_statistics_of_the_start_are_kept_on_request(images, tmp_path, keep):
    network = build_network("compact", len(CLASSES))
    start = save_model(
        tmp_path / "start.pt", SourceModel(network, "compact", class_set_of(CLASSES))
    )
    first = replace(task(images, num_steps=2), start=start, keep_statistics=keep)
    pretrain(first, LocalRun(tmp_path / "run"), lambda _: {})
    after = load_state(tmp_path / "run")["student"]
    means = {name: value for name, value in network.state_dict().items() if "running_mean" in name}
    assert means
    assert all(torch.equal(after[name], value) == keep for name, value in means.items())
    weights = dict(network.named_parameters())
    assert not all(torch.equal(after[name], weight) for name, weight in weights.items())
