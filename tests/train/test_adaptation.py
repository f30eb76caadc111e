"""Whole short adaptations of a tiny dataset in this process."""

import copy
import shutil
from dataclasses import fields

import pytest
import torch
from torch import nn
from train_samples import (
    CLASSES,
    KEEPS_ALL,
    adaptation_task,
    assert_states_close,
    sharp_source,
    small_config,
    write_dataset,
)

from sfss_ray.config import override
from sfss_ray.data.class_sets import class_set_of
from sfss_ray.errors import TrainingError
from sfss_ray.models import networks
from sfss_ray.models.build import SourceModel, load_model, save_model
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.train.adaptation import AdaptationTask, adapt_student, estimate_statistics
from sfss_ray.train.run import LocalRun, load_state, read_progress


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("adaptation"))


@pytest.fixture(scope="module")
def source(root):
    return sharp_source(root / "source.pt")


class Interrupted(Exception):
    """Stands for a machine that goes away."""


def interrupt_at(step: int):
    def on_report(metrics):
        if metrics["step"] == step:
            raise Interrupted

    return on_report


def adapt(root, source, config, folder, watch=None) -> LocalRun:
    run = LocalRun(folder)
    adapt_student(adaptation_task(root, source, config), run, watch)
    return run


def adapt_in_two_parts(root, source, config, folder, at: int) -> LocalRun:
    task = adaptation_task(root, source, config)
    with pytest.raises(Interrupted):
        adapt_student(task, LocalRun(folder, on_report=interrupt_at(at)))
    assert load_state(folder)["step"] == at
    torch.manual_seed(12345)  # another process starts with other random numbers
    return adapt(root, source, config, folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_norm": "adapt"},
        {"batch_norm": "frozen", "loss__projection": "mlp", "optim__optimizer": "sgd"},
        {"loss__mask_vote": "pooled", "loss__prior_power": 0.5, "augment__class_mix": 0.5},
    ],
)
def test_interrupted_and_resumed_is_uninterrupted(root, source, tmp_path, changes):
    config = small_config(**changes)
    adapt(root, source, config, tmp_path / "whole")
    adapt_in_two_parts(root, source, config, tmp_path / "parts", at=3)
    assert_states_close(tmp_path / "whole", tmp_path / "parts", tolerance=1e-6)
    state = load_state(tmp_path / "whole")
    assert state["step"] == 6
    assert state["bank"]["written"].sum() > 0
    records = read_progress(tmp_path / "parts")
    assert [r["step"] for r in records] == [3, 6]
    assert all(r["loss_ins"] > 0 for r in records)


def test_norm_layers_alone_learn_when_asked(root, source, tmp_path):
    config = small_config(optim__trainable="norm", loss__label_space="entropy")
    adapt(root, source, config, tmp_path)
    before, after = load_model(source).network.state_dict(), load_state(tmp_path)["student"]
    norms = {
        f"{name}.{kind}"
        for name, layer in load_model(source).network.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
        for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    for name, value in before.items():
        if name not in norms:
            assert torch.equal(value, after[f"segmenter.{name}"]), name
    moved = [n for n in norms if not torch.equal(before[n], after[f"segmenter.{n}"])]
    assert any(n.endswith(".weight") for n in moved)


def compact_with_dropout(num_classes: int) -> Segmenter:
    network = networks._compact(num_classes)
    return Segmenter(nn.Sequential(network.body, nn.Dropout(0.5)), network.classifier)


def test_resuming_a_network_with_dropout_draws_the_same_units(root, tmp_path, monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "dropout", compact_with_dropout)
    torch.manual_seed(0)
    network = compact_with_dropout(len(CLASSES))
    model = SourceModel(network, "dropout", class_set_of(CLASSES))
    source = save_model(tmp_path / "dropout.pt", model)
    config = small_config(num_steps=4, evaluate_every=2)
    adapt(root, source, config, tmp_path / "whole")
    adapt_in_two_parts(root, source, config, tmp_path / "parts", at=2)
    assert_states_close(tmp_path / "whole", tmp_path / "parts", tolerance=1e-6)


def test_a_finished_run_is_left_as_it_is(root, source, tmp_path):
    config = small_config(num_steps=2)
    adapt(root, source, config, tmp_path)
    before = (tmp_path / "state.pt").read_bytes()
    adapt(root, source, config, tmp_path)
    assert (tmp_path / "state.pt").read_bytes() == before
    assert len(read_progress(tmp_path)) == 1


def test_watching_is_reported_and_changes_nothing(root, source, tmp_path):
    seen = []

    def watch(network, teacher):
        assert not any(m.training for m in [*network.modules(), *teacher.modules()])
        assert network is not teacher
        torch.rand(7)  # a watch may draw random numbers
        seen.append(network)
        return {"score": 0.25}

    config = small_config(num_steps=4, evaluate_every=2)
    adapt(root, source, config, tmp_path / "watched", watch)
    adapt(root, source, config, tmp_path / "alone")
    assert len(seen) == 2
    assert_states_close(tmp_path / "watched", tmp_path / "alone")
    assert [r["score"] for r in read_progress(tmp_path / "watched")] == [0.25, 0.25]


def test_a_source_model_with_nan_is_refused_in_one_line(root, tmp_path, capfd, recwarn):
    broken = sharp_source(tmp_path / "broken.pt", spoil=True)
    with pytest.raises(TrainingError, match=r"at step 1\b.*none was saved") as caught:
        adapt(root, broken, small_config(), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_later_nan_keeps_the_last_checkpoint(root, source, tmp_path):
    config = small_config(num_steps=4, evaluate_every=2, optim__optimizer="sgd")

    def poison(network, teacher):
        torch.nn.init.constant_(network.classifier.bias, torch.nan)
        return {}

    with pytest.raises(TrainingError, match=r"at step 3 .*the checkpoint of step 2 is kept"):
        adapt(root, source, config, tmp_path, poison)
    assert load_state(tmp_path)["step"] == 2


def running_statistics(weights: dict, prefix: str = "") -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if "running_" in name or "num_batches" in name
    }


@pytest.mark.parametrize("mode", ["frozen", "target", "adapt"])
def test_batch_norm_statistics_stay_or_adapt(root, source, tmp_path, mode):
    adapt(root, source, small_config(num_steps=2, batch_norm=mode), tmp_path)
    state = load_state(tmp_path)
    before = running_statistics(load_model(source).network.state_dict())
    student = running_statistics(state["student"], "segmenter.")
    teacher = running_statistics(state["teacher"], "segmenter.")
    assert before.keys() == student.keys()
    assert before
    for name, value in before.items():
        assert torch.equal(student[name], teacher[name])
        assert torch.equal(value, student[name]) == (mode == "frozen"), name


def test_target_statistics_are_of_weak_views_and_stay(root, source, tmp_path):
    def statistics(steps, **changes):
        config = small_config(num_steps=steps, evaluate_every=1, batch_norm="target", **changes)
        folder = tmp_path / f"{steps}{len(changes)}"
        adapt(root, source, config, folder)
        return running_statistics(load_state(folder)["student"], "segmenter.")

    one, two = statistics(1), statistics(2)
    # the colours of the strong view play no part in them
    plain = statistics(1, augment__jitter_probability=0.0, augment__blur_probability=0.0)
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
        assert torch.equal(value, plain[name]), name


def test_a_share_of_the_statistics_stays_the_source_s():
    batches = [torch.rand(2, 3, 32, 32) for _ in range(2)]
    torch.manual_seed(0)
    start = networks.build_network("compact", 3).train()
    half, whole = copy.deepcopy(start), copy.deepcopy(start)
    estimate_statistics(half, batches, 0.5)
    estimate_statistics(whole, batches)
    for name, value in running_statistics(half.state_dict()).items():
        if "running_" in name:
            old, new = start.state_dict()[name], whole.state_dict()[name]
            assert not torch.equal(old, new)
            assert torch.allclose(value, (old + new) / 2, atol=1e-6), name


def test_statistics_are_the_mean_over_the_batches():
    network = networks.build_network("compact", 3).train()
    batches = [torch.rand(2, 3, 32, 32) * scale for scale in (0.2, 0.5, 1.0)]
    estimate_statistics(network, batches)
    first = network.body.stem
    with torch.no_grad():
        seen = [first[0]((b - network.mean) / network.std) for b in batches]
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
    torch.testing.assert_close(first[1].running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first[1].running_var, variance, rtol=1e-4, atol=1e-5)
    assert first[1].momentum == 0.1


def test_without_statistics_steps_the_source_statistics_are_the_start(root, source, tmp_path):
    config = small_config(num_steps=1, statistics_steps=0)
    adapt(root, source, config, tmp_path)
    before = load_model(source).network.state_dict()["body.stem.1.running_mean"]
    after = load_state(tmp_path)["student"]["segmenter.body.stem.1.running_mean"]
    moved = (after - 0.9 * before) / 0.1  # one batch at momentum .1
    assert not torch.equal(after, before)
    assert moved.abs().max() < 10 * (before.abs().max() + 1)


def test_teacher_follows_the_student_slowly(root, source, tmp_path):
    config = small_config(num_steps=3, batch_norm="frozen", ema_momentum=0.9)
    adapt(root, source, config, tmp_path)
    state = load_state(tmp_path)
    name = "segmenter.classifier.weight"
    start = load_model(source).network.state_dict()["classifier.weight"]
    student, teacher = (state[k][name] - start for k in ("student", "teacher"))
    assert 0 < teacher.norm() < 0.3 * student.norm()


def test_the_task_holds_nothing_of_labels_or_source_data():
    names = [f.name for f in fields(AdaptationTask)]
    assert names == ["source_model", "images", "masks", "config", "architecture"]


def test_labels_are_not_needed_on_disk(root, source, tmp_path):
    unlabelled = write_dataset(tmp_path / "data")
    for file in (unlabelled / "labels").iterdir():
        file.unlink()
    config = small_config(num_steps=2)
    adapt(unlabelled, source, config, tmp_path / "without")
    adapt(root, source, config, tmp_path / "with")
    assert_states_close(tmp_path / "without", tmp_path / "with")


def test_a_batch_in_parts_teaches_what_the_whole_does(root, source, tmp_path):
    plain = {"batch_norm": "frozen", "optim__optimizer": "sgd"} | KEEPS_ALL
    whole = small_config(num_steps=2, batch_size=4, **plain)
    parts = override(whole, {"train.accumulate": 4})
    adapt(root, source, whole, tmp_path / "whole")
    adapt(root, source, parts, tmp_path / "parts")
    assert_states_close(tmp_path / "whole", tmp_path / "parts", tolerance=1e-5)
    (one,), (other,) = (read_progress(tmp_path / name) for name in ("whole", "parts"))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


# Recorded on a CPU; they change only with the method, its random draws or its defaults.
GOLDEN = [0.614253, 2.07989, 2.059184, 2.617955, 4.951049, 2.417278]


def test_golden_loss_curve(root, source, tmp_path):
    adapt(root, source, small_config(evaluate_every=1), tmp_path)
    losses = [r["loss"] for r in read_progress(tmp_path)]
    assert losses == pytest.approx(GOLDEN, rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler: g++")
def test_a_compiled_student_learns_what_a_plain_one_does(root, source, tmp_path):
    for name, compiled in (("plain", False), ("compiled", True)):
        config = small_config(num_steps=2, optim__optimizer="sgd", compile=compiled)
        adapt(root, source, config, tmp_path / name)
    assert_states_close(tmp_path / "plain", tmp_path / "compiled", tolerance=1e-4)
    keys = load_state(tmp_path / "compiled")["student"].keys()
    assert not any("_orig_mod" in key for key in keys)
