"""Whole short adaptations of a tiny data set in this process."""

import dataclasses
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from train_samples import (
    CLASSES,
    COLOURS,
    KEEPS_ALL,
    adaptation_task,
    assert_states_close,
    embed_masks,
    flat_state,
    mask_rows,
    sharp_source,
    small_config,
    tile_labels,
    write_dataset,
    write_image,
)

from sfss_ray import wrap_model
from sfss_ray.config import override
from sfss_ray.data.class_sets import class_set_of
from sfss_ray.data.folders import list_images
from sfss_ray.errors import DataError, TrainingError
from sfss_ray.evaluation.inference import predict_probabilities
from sfss_ray.inputs.check import check_inputs
from sfss_ray.inputs.request import Request
from sfss_ray.masks.bank.schema import CONCEPTS, write_shard
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.method.contrast_net import ContrastNet
from sfss_ray.models.architectures import catalogue
from sfss_ray.models.model_file import SourceModel, load_model, save_model
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.models.source import open_source
from sfss_ray.train import adaptation
from sfss_ray.train.adaptation import Adaptation, AdaptationTask, adapt_student
from sfss_ray.train.launch import save_network
from sfss_ray.train.run_state import LocalRun, load_state, read_progress
from sfss_ray.train.training_inputs import prepare_training


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("adaptation"))


@pytest.fixture(scope="module")
def source(root):
    return sharp_source(root / "source.pt")


class Interrupted(Exception):
    """Stands for a machine that stops."""


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
        {"batch_norm": "target", "loss__source_vote": 0.25, "source_share": 0.0},
        {
            "loss__mask_vote": "pooled",
            "loss__neighbour_weight": 1.0,
            "loss__neighbour_space": "geometry",
            "loss__rule_out_weight": 1.0,
            "loss__output_weight": 0.5,
            "loss__ring_weight": 0.5,
            "augment__class_mix": 0.5,
        },
        {
            "loss__mask_vote": "pooled",
            "loss__neighbour_weight": 1.0,
            "loss__neighbour_space": "learned",
            "augment__class_mix": 0.5,
        },
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


def test_a_resumed_run_knows_the_embeddings_of_its_masks(source, tmp_path):
    data = write_dataset(tmp_path / "data", count=4)
    embed_masks(data / "masks")
    config = small_config(loss__mask_vote="pooled", augment__class_mix=0.5)
    assert config.train.loss.neighbour_weight is None
    adapt(data, source, config, tmp_path / "whole")
    adapt_in_two_parts(data, source, config, tmp_path / "parts", at=3)
    assert_states_close(tmp_path / "whole", tmp_path / "parts", tolerance=1e-6)
    rings = [load_state(tmp_path / name)["neighbours"] for name in ("whole", "parts")]
    assert int(rings[0]["written"]) == int(rings[1]["written"]) > 0
    for name in ("probabilities", "images"):
        assert torch.equal(rings[0][name], rings[1][name])


def test_masks_with_embeddings_are_compared_by_them(source, tmp_path):
    write_dataset(tmp_path / "data", count=4)
    embed_masks(tmp_path / "data" / "masks")
    config = small_config(loss__mask_vote="pooled", augment__class_mix=0.5)
    assert config.train.loss.neighbour_weight is None
    task = adaptation_task(tmp_path / "data", source, config)
    adapt_student(task, LocalRun(tmp_path / "run"))
    (block,) = load_state(tmp_path / "run")["neighbours"]["blocks"]
    stored = MaskStore(tmp_path / "data" / "masks").embeddings("0")[1:]
    matches = (block[:, None] == torch.from_numpy(stored)).all(2).any(0)
    assert matches.all()


def test_masks_without_embeddings_have_no_neighbours(root, source, tmp_path):
    config = small_config(loss__mask_vote="pooled")
    adapt(root, source, config, tmp_path)
    assert "neighbours" not in load_state(tmp_path)


def test_only_norm_layers_learn_if_the_config_says_so(root, source, tmp_path):
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
    network = catalogue._compact(num_classes)
    return Segmenter(nn.Sequential(network.body, nn.Dropout(0.5)), network.classifier)


def test_resuming_a_network_with_dropout_draws_the_same_units(root, tmp_path, monkeypatch):
    monkeypatch.setitem(catalogue.NETWORKS, "dropout", compact_with_dropout)
    torch.manual_seed(0)
    network = compact_with_dropout(len(CLASSES))
    model = SourceModel(network, "dropout", class_set_of(CLASSES))
    source = save_model(tmp_path / "dropout.pt", model)
    config = small_config(num_steps=4, evaluate_every=2)
    adapt(root, source, config, tmp_path / "whole")
    adapt_in_two_parts(root, source, config, tmp_path / "parts", at=2)
    assert_states_close(tmp_path / "whole", tmp_path / "parts", tolerance=1e-6)


class ListNet(nn.Module):
    """A user's network with its layers in a list, whose name may hide a method of nn.Module."""

    def __init__(self, list_name: str):
        super().__init__()
        self.list_name = list_name
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.classifier = nn.Conv2d(8, len(CLASSES), 1)
        setattr(self, list_name, [self.encoder, self.classifier])

    def forward(self, x):
        for layer in vars(self)[self.list_name]:
            x = layer(x)
        return x


@pytest.mark.parametrize("list_name", ["modules", "children", "named_modules", "parameters"])
def test_attributes_that_hide_methods_of_torch_do_not_change_training(root, tmp_path, list_name):
    config = small_config(num_steps=4, evaluate_every=2, batch_norm="target")
    for name in (list_name, "blocks"):
        torch.manual_seed(0)
        model = wrap_model(ListNet(name), classes=CLASSES, feature_layer="encoder.1")
        source = open_source(model).placed(tmp_path / f"source_{name}")
        task = dataclasses.replace(
            adaptation_task(root, source.path, config), architecture=source.carried
        )
        adapt_student(task, LocalRun(tmp_path / name))
    assert_states_close(tmp_path / list_name, tmp_path / "blocks")


def test_a_network_with_logits_finer_than_its_features_is_adapted(root, tmp_path):
    class Finer(ListNet):
        """Its features have stride 4, its logits are as fine as the image and see it."""

        def __init__(self):
            super().__init__("blocks")
            self.edges = nn.Conv2d(3, len(CLASSES), 3, padding=1)

        def forward(self, x):
            coarse = nn.functional.interpolate(super().forward(x), x.shape[-2:], mode="bilinear")
            return coarse + self.edges(x)

    model = wrap_model(Finer(), classes=CLASSES, feature_layer="encoder.2")
    source = open_source(model).placed(tmp_path)
    features, logits = source.load().network(torch.rand(1, 3, 48, 48))
    assert (features.shape[-1], logits.shape[-1]) == (12, 48)
    config = small_config(
        num_steps=4,
        evaluate_every=4,
        loss__class_quantile=1.0,
        pairs__min_purity=0.2,  # a random network agrees with no mask
    )
    task = adaptation_task(root, source.path, config)
    run = LocalRun(tmp_path / "run")
    adapt_student(dataclasses.replace(task, architecture=source.carried), run)
    assert all(record["anchors"] > 0 for record in read_progress(run.folder)[-1:])
    student = load_state(run.folder)["student"]
    for name, weight in source.load().network.state_dict().items():
        if name.endswith("weight"):
            assert not torch.equal(student[f"segmenter.{name}"], weight), name


class PatchNet(torch.nn.Module):
    """A network that takes whole patches only."""

    def __init__(self, patch):
        super().__init__()
        self.patch = patch
        self.embed = torch.nn.Conv2d(3, 8, 8, 8)
        self.classifier = torch.nn.Conv2d(8, len(CLASSES), 1)

    def forward(self, x):
        assert all(side % self.patch == 0 for side in x.shape[-2:])
        return self.classifier(self.embed(x))


class StoringNet(ListNet):
    """A network that stores its last features in an attribute."""

    def forward(self, x):
        self.last = self.encoder(x)
        return self.classifier(self.last)


def test_networks_that_store_tensors_in_attributes_are_adapted(root, tmp_path):
    model = wrap_model(StoringNet("blocks"), classes=CLASSES, feature_layer="encoder.1")
    source = open_source(model).placed(tmp_path)
    task = adaptation_task(root, source.path, small_config(num_steps=2, evaluate_every=2))
    adapt_student(
        dataclasses.replace(task, architecture=source.carried), LocalRun(tmp_path / "run")
    )
    assert load_state(tmp_path / "run")["step"] == 2


def test_crops_are_rounded_to_the_multiple_of_a_module(root, tmp_path):
    """The crop of 48x48 pixels of the config becomes one of 42x42."""
    model = wrap_model(PatchNet(14), classes=CLASSES)
    source = open_source(model).placed(tmp_path)
    task = adaptation_task(root, source.path, small_config(num_steps=2, evaluate_every=2))
    task = dataclasses.replace(task, architecture=source.carried)
    assert task.config.train.augment.crop_size == (48, 48)
    adapt_student(task, LocalRun(tmp_path / "run"))
    assert load_state(tmp_path / "run")["step"] == 2


def test_a_finished_run_is_not_changed(root, source, tmp_path):
    config = small_config(num_steps=2)
    adapt(root, source, config, tmp_path)
    before = (tmp_path / "state.pt").read_bytes()
    adapt(root, source, config, tmp_path)
    assert (tmp_path / "state.pt").read_bytes() == before
    assert len(read_progress(tmp_path)) == 1


def test_scores_of_the_watch_are_reported_and_change_nothing(root, source, tmp_path):
    watched = []

    def watch(network, teacher):
        assert not any(m.training for m in [*network.modules(), *teacher.modules()])
        assert network is not teacher
        torch.rand(7)  # a watch may draw random numbers
        watched.append(network)
        return {"score": 0.25}

    config = small_config(num_steps=4, evaluate_every=2)
    adapt(root, source, config, tmp_path / "watched", watch)
    adapt(root, source, config, tmp_path / "alone")
    assert len(watched) == 2
    assert_states_close(tmp_path / "watched", tmp_path / "alone")
    assert [r["score"] for r in read_progress(tmp_path / "watched")] == [0.25, 0.25]


def test_a_source_model_with_nan_is_refused_in_one_line(root, tmp_path, capfd, recwarn):
    broken = sharp_source(tmp_path / "broken.pt", spoil=True)
    with pytest.raises(TrainingError, match=r"at step 1\b.*no checkpoint was saved yet") as caught:
        adapt(root, broken, small_config(), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert not (tmp_path / "run" / "state.pt").exists()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_keeps_the_good_checkpoint(
    root, source, tmp_path, monkeypatch, bad
):
    """The named checkpoint is sound: a run resumed from it ends like one that was never spoilt."""
    config = small_config(num_steps=4, evaluate_every=2)
    adapt(root, source, config, tmp_path / "whole")
    sound = adaptation.adaptation_losses

    def spoilt(*arguments, **named):
        loss, metrics = sound(*arguments, **named)
        _, _, _, info = arguments
        return (loss * bad if info.step == 3 else loss), metrics

    monkeypatch.setattr(adaptation, "adaptation_losses", spoilt)
    message = r"^the loss is (nan|inf) and .* at step 3 \(the checkpoint of step 2 is kept\)"
    with pytest.raises(TrainingError, match=message):
        adapt(root, source, config, tmp_path / "spoilt")
    state = load_state(tmp_path / "spoilt")
    assert state["step"] == 2
    assert all(v.isfinite().all() for v in flat_state(state).values())
    monkeypatch.undo()
    adapt(root, source, config, tmp_path / "spoilt")
    assert_states_close(tmp_path / "whole", tmp_path / "spoilt", tolerance=1e-6)


def running_statistics(weights: dict, prefix: str = "") -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if "running_" in name or "num_batches" in name
    }


@pytest.mark.parametrize("mode", ["frozen", "target", "adapt"])
def test_batch_norm_statistics_are_fixed_or_adapt(root, source, tmp_path, mode):
    adapt(root, source, small_config(num_steps=2, batch_norm=mode), tmp_path)
    state = load_state(tmp_path)
    before = running_statistics(load_model(source).network.state_dict())
    student = running_statistics(state["student"], "segmenter.")
    teacher = running_statistics(state["teacher"], "segmenter.")
    assert before.keys() == student.keys()
    assert before
    for name, value in before.items():
        # The teacher follows statistics that change as slowly as it follows weights.
        changing = mode == "adapt" and "running_" in name
        assert torch.equal(student[name], teacher[name]) == (not changing), name
        assert torch.equal(value, student[name]) == (mode == "frozen"), name


def test_target_statistics_are_those_of_whole_images_and_fixed(root, source, tmp_path):
    def statistics(steps, **changes):
        config = small_config(num_steps=steps, evaluate_every=1, batch_norm="target", **changes)
        folder = tmp_path / f"{steps}{len(changes)}"
        adapt(root, source, config, folder)
        return running_statistics(load_state(folder)["student"], "segmenter.")

    after_one, after_two = statistics(1), statistics(2)
    # Crops and their colours have no influence.
    plain = statistics(1, augment__jitter_probability=0.0, augment__crop_size=[40, 56])
    for name, value in after_one.items():
        assert torch.equal(value, after_two[name]), name
        assert torch.equal(value, plain[name]), name


def test_statistics_are_chosen_on_held_out_images(root, source, tmp_path, monkeypatch):
    """Images that train a student would also favour the statistics that it learns."""
    compared = []

    def record(network, images, config):
        compared.append(images)

    monkeypatch.setattr(adaptation, "set_initial_statistics", record)
    task = adaptation_task(root, source, small_config(num_steps=1))
    held_out = task.images[-2:]
    task = dataclasses.replace(task, images=task.images[:-2], held_out=held_out)
    adapt_student(task, LocalRun(tmp_path))
    assert [images.training for images in compared] == [task.images]
    assert [images.held_out for images in compared] == [held_out]


def test_without_statistics_images_training_starts_from_the_source_statistics(
    root, source, tmp_path
):
    config = small_config(num_steps=1, statistics_images=0)
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


def test_the_task_contains_no_labels_and_no_source_data():
    names = [f.name for f in fields(AdaptationTask)]
    networks, data = ["source_model", "architecture"], ["images", "masks", "held_out", "concepts"]
    assert sorted(names) == sorted([*networks, *data, "config"])


@pytest.mark.parametrize("spoil", ["removed", "of other classes"])
def test_validation_labels_change_nothing_but_the_report(root, source, tmp_path, spoil):
    """Labels of the training images themselves, spoilt after the inputs were checked."""
    config = small_config(num_steps=2)
    adapt(root, source, config, tmp_path / "sound")
    data = write_dataset(tmp_path / "data")
    images, labels = data / "images", data / "labels"
    request = Request(
        "train",
        source,
        images,
        tmp_path / "run",
        config,
        masks=data / "masks",
        val_images=images,
        val_labels=labels,
    )
    inputs = check_inputs(request)
    prepared = prepare_training(inputs, MaskStore(data / "masks"), config)
    examination = prepared.examination(config)
    network = load_model(source).network
    before = examination.score(network).miou
    for file in labels.iterdir():
        if spoil == "removed":
            file.unlink()
        else:
            write_image(file, (tile_labels(int(file.stem)) + 1) % len(CLASSES))
    task = dataclasses.replace(prepared.task(config), images=tuple(list_images(images)))
    adapt_student(task, LocalRun(tmp_path / "spoilt"))
    assert_states_close(tmp_path / "sound", tmp_path / "spoilt")
    if spoil == "removed":
        with pytest.raises((DataError, OSError)):
            examination.score(network)
    else:
        assert examination.score(network).miou != before


def test_training_opens_only_images_and_the_model(root, source, tmp_path):
    """Python reports every file that it opens (PEP 578); shards are read by pyarrow."""
    opened, listening = [], [True]

    def hook(event, arguments):
        if listening and event == "open" and str(arguments[0]).startswith(str(root)):
            opened.append(Path(arguments[0]).relative_to(root).parts[0])

    sys.addaudithook(hook)  # it cannot be removed again
    adapt(root, source, small_config(num_steps=2), tmp_path)
    listening.clear()
    assert set(opened) == {"images", "source.pt"}


def test_an_accumulated_batch_trains_as_the_whole_batch(root, source, tmp_path):
    plain = {"batch_norm": "frozen", "optim__optimizer": "sgd"} | KEEPS_ALL
    whole = small_config(num_steps=2, batch_size=4, **plain)
    parts = override(whole, {"train.accumulate": 4})
    adapt(root, source, whole, tmp_path / "whole")
    adapt(root, source, parts, tmp_path / "parts")
    assert_states_close(tmp_path / "whole", tmp_path / "parts", tolerance=1e-5)
    (record,), (of_parts,) = (read_progress(tmp_path / name) for name in ("whole", "parts"))
    assert record["loss"] == pytest.approx(of_parts["loss"], rel=1e-5)


def test_the_log_counts_the_anchors_of_an_image_however_the_batch_is_split(root, source, tmp_path):
    plain = {"batch_norm": "frozen", "loss__ramp": (0.0, 0.0)}
    whole = small_config(num_steps=2, batch_size=4, **plain)
    adapt(root, source, whole, tmp_path / "whole")
    adapt(root, source, override(whole, {"train.accumulate": 2}), tmp_path / "parts")
    record, of_parts = (read_progress(tmp_path / name)[-1] for name in ("whole", "parts"))
    assert record["masks"] == of_parts["masks"]
    # A part has fewer prototypes, so a few of its anchors may have no negative.
    assert record["anchors"] >= of_parts["anchors"] > 0.7 * record["anchors"] > 0


def write_concepts(folder, root, seed=0):
    """Masks with classes for each image but one: the true tiles of a class, with random scores."""
    rng, rows = np.random.default_rng(seed), []
    for image in list_images(root / "images")[1:]:
        labels, masks = tile_labels(int(image.image_id)), []
        for class_id in np.unique(labels).tolist():
            (record,) = mask_rows([labels == class_id])
            score = float(rng.uniform(0.5, 1))
            masks.append(record | {"class_id": class_id, "predicted_iou": score})
        row = {"image_id": image.image_id, "path": "", "error": None, "masks": masks}
        rows.append(row | {"height": labels.shape[0], "width": labels.shape[1]})
    folder.mkdir()
    write_shard(folder / "masks-0.parquet", rows, {"source": CONCEPTS})
    return folder


def test_masks_with_classes_vote_and_without_weight_change_nothing(root, source, tmp_path):
    folder = write_concepts(tmp_path / "concepts", root)

    def losses(name, **changes):
        config = small_config(num_steps=3, evaluate_every=1, loss__mask_vote="pooled", **changes)
        task = adaptation_task(root, source, config)
        if name != "none":
            task = dataclasses.replace(task, concepts=str(folder))
        adapt_student(task, LocalRun(tmp_path / name))
        return [r["loss"] for r in read_progress(tmp_path / name)]

    plain = losses("none")
    assert losses("off", loss__concept_weight=0.0) == plain
    voting = losses("on", loss__concept_weight=1.0)
    assert voting != plain
    parts = losses("parts", loss__concept_weight=1.0, accumulate=2)
    assert np.isfinite([*voting, *parts]).all()


def test_a_sample_has_the_scores_of_the_pixels_it_shows(root, source, tmp_path):
    folder = write_concepts(tmp_path / "concepts", root)
    config = small_config(loss__concept_weight=1.0)
    task = dataclasses.replace(adaptation_task(root, source, config), concepts=str(folder))
    samples = Adaptation(task, LocalRun(tmp_path / "run")).samples
    for number in range(12):
        sample = samples[number]
        scores = sample["concept_scores"].numpy()
        assert scores.shape == (len(CLASSES), *sample["mask_ids"].shape)
        if task.images[sample["image"]] == list_images(root / "images")[0]:
            assert not scores.any(), "no row of this image"
            continue
        assert ((scores > 0).sum(0) == 1).all(), "each pixel has one true class"
        # The colours of the weak view are those of the class with a score.
        colours = COLOURS[scores.argmax(0)].astype(float)
        error = np.abs(sample["weak"].permute(1, 2, 0).numpy() - colours).mean()
        assert error < 30
        assert error < np.abs(sample["weak"].permute(1, 2, 0).numpy() - np.flip(colours, 0)).mean()


# Recorded on a CPU; they change only with the method, its random draws or its defaults.
GOLDEN = [0.58945, 0.943118, 1.515744, 0.570643, 2.708423, 1.900815]


def test_golden_loss_curve(root, source, tmp_path):
    adapt(root, source, small_config(evaluate_every=1), tmp_path)
    losses = [r["loss"] for r in read_progress(tmp_path)]
    assert losses == pytest.approx(GOLDEN, rel=1e-3)


RECOMMENDED = {
    "batch_norm": "target",
    "loss__mask_vote": "pooled",
    "loss__prior_power": 0.25,
    "loss__projection": "mlp",
    "loss__contrast_weight": 0.03,
}
GOLDEN_RECOMMENDED = [1.965153, 0.487703, 0.728507, 0.758021, 1.353027, 0.659947]


def test_golden_loss_curve_of_the_recommended_method(root, source, tmp_path):
    adapt(root, source, small_config(evaluate_every=1, **RECOMMENDED), tmp_path)
    losses = [r["loss"] for r in read_progress(tmp_path)]
    assert losses == pytest.approx(GOLDEN_RECOMMENDED, rel=1e-3)


def test_the_memory_layout_of_channels_changes_nothing(root, source, tmp_path):
    for name, last in (("first", False), ("last", True)):
        config = small_config(num_steps=2, optim__optimizer="sgd", channels_last=last)
        adapt(root, source, config, tmp_path / name)
    assert_states_close(tmp_path / "first", tmp_path / "last", tolerance=1e-4)


def test_bf16_trains_about_as_fp32_and_its_losses_are_float32(root, source, tmp_path, monkeypatch):
    dtypes = set()
    forward = ContrastNet.forward

    def watched(self, images):
        hook = self.segmenter.classifier.register_forward_hook(
            lambda module, inputs, output: dtypes.add(("inside", output.dtype))
        )
        outputs = forward(self, images)
        hook.remove()
        dtypes.update(("returned", output.dtype) for output in outputs[:2])
        return outputs

    monkeypatch.setattr(ContrastNet, "forward", watched)
    curves = {}
    for precision in ("fp32", "bf16"):
        dtypes.clear()
        config = small_config(num_steps=3, evaluate_every=1, precision=precision, **KEEPS_ALL)
        adapt(root, source, config, tmp_path / precision)
        inside = torch.bfloat16 if precision == "bf16" else torch.float32
        assert dtypes == {("inside", inside), ("returned", torch.float32)}
        curves[precision] = [r["loss"] for r in read_progress(tmp_path / precision)]
        state = flat_state(load_state(tmp_path / precision)["student"])
        assert {v.dtype for v in state.values() if v.is_floating_point()} == {torch.float32}
    assert curves["bf16"] != curves["fp32"]
    assert curves["bf16"] == pytest.approx(curves["fp32"], rel=0.05)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler: g++")
def test_a_compiled_student_trains_as_a_plain_one(root, source, tmp_path):
    for name, compiled in (("plain", False), ("compiled", True)):
        config = small_config(num_steps=2, optim__optimizer="sgd", compile=compiled)
        adapt(root, source, config, tmp_path / name)
    assert_states_close(tmp_path / "plain", tmp_path / "compiled", tolerance=1e-4)
    keys = load_state(tmp_path / "compiled")["student"].keys()
    assert not any("_orig_mod" in key for key in keys)


GROUPS = {"warm": ["red", "yellow"], "cold": ["blue", "green"], "dropped": ["grey"]}


def grouped_source(source: Path, folder: Path, groups) -> Path:
    """Write the source model with class groups into a run folder."""
    return open_source(source, class_groups=groups).placed(folder).path


def test_groups_of_one_class_each_train_as_the_classes_themselves(root, source, tmp_path):
    config = small_config(num_steps=3, loss__mask_vote="pooled", loss__prior_power=0.5)
    alone = grouped_source(source, tmp_path / "model", {name: [name] for name in CLASSES})
    adapt(root, source, config, tmp_path / "classes")
    adapt(root, alone, config, tmp_path / "groups")
    assert_states_close(tmp_path / "classes", tmp_path / "groups")


def test_students_learn_and_are_scored_over_groups(tmp_path, source):
    data, config = write_dataset(tmp_path / "data"), small_config(num_steps=3)
    images, labels = data / "images", data / "labels"
    (data / "classes.txt").write_text("\n".join(CLASSES))
    request = Request(
        "train",
        source,
        images,
        tmp_path / "run",
        config,
        class_groups=GROUPS,
        masks=data / "masks",
        val_images=images,
        val_labels=labels,
    )
    inputs = check_inputs(request)
    assert inputs.notes[0] == (
        "class groups 'custom': warm = red + yellow; cold = blue + green; dropped: grey"
    )
    prepared = prepare_training(inputs, MaskStore(data / "masks"), config).placed(tmp_path / "run")
    run = LocalRun(tmp_path / "run")
    adapt_student(prepared.task(config), run, prepared.examination(config))
    state = load_state(tmp_path / "run")
    assert state["prior"].numel() == 2
    assert {name: value.shape for name, value in state["student"].items()} == {
        f"segmenter.{name}": value.shape
        for name, value in load_model(source).network.state_dict().items()
    } | {n: value.shape for n, value in state["student"].items() if n.startswith("projection.")}
    save_network(state, "student", prepared, config, tmp_path / "student.pt")
    student = load_model(tmp_path / "student.pt")
    assert student.classes.classes == ("warm", "cold")
    assert student.outputs.classes == CLASSES

    # The labels have five classes, and members are scored as their group.
    score = prepared.examination(config).score(student.network)
    hits = total = 0
    for file in inputs.labelled:
        group = np.array([0, 1, 1, 0, 255])[tile_labels(int(file.image_id))]
        guess = predict_probabilities(student.network, file.read(), config.evaluation).argmax(0)
        hits += int(((group == guess) & (group != 255)).sum())
        total += int((group != 255).sum())
    assert score.pixel_accuracy == pytest.approx(100 * hits / total)
    assert sum(score.labelled_share) == pytest.approx(1)
    (record,) = read_progress(tmp_path / "run")
    assert record["val_miou"] == pytest.approx(score.miou)
