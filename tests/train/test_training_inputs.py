"""Checked inputs of an adaptation: the split, the task, and what is sent to other processes."""

import pickle

import pytest
from train_samples import CLASSES, sharp_source, small_config, write_dataset

from sfss_ray.config import override
from sfss_ray.errors import DataError
from sfss_ray.inputs.check import check_inputs
from sfss_ray.inputs.request import Request
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.runtime import cluster
from sfss_ray.runtime.resources import Resources
from sfss_ray.train.training_inputs import Prepared, prepare_training

CONFIG = override(small_config(), {"compute.device": "cpu", "evaluation.held_out_share": 0.34})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_dataset(tmp_path_factory.mktemp("inputs"))
    sharp_source(root / "source.pt")
    return root


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    resources = Resources(2.0, 0, ((2.0, 0.0),))
    monkeypatch.setattr(cluster, "capacity", lambda compute: resources)


def prepare(root, config=CONFIG) -> Prepared:
    source, images = root / "source.pt", root / "images"
    request = Request("train", source, images, root / "run", config, masks=root / "masks")
    inputs = check_inputs(request)
    return prepare_training(inputs, MaskStore(root / "masks"), config)


def test_images_are_either_trained_on_or_held_out(root):
    prepared = prepare(root)
    ids = [image.image_id for image in (*prepared.training, *prepared.held_out)]
    assert sorted(ids) == [str(i) for i in range(6)]
    assert len(prepared.held_out) == 2
    assert prepared.classes.classes == CLASSES


def test_the_task_has_the_training_images_alone(root):
    prepared = prepare(root)
    task = prepared.task(CONFIG)
    assert task.images == prepared.training
    assert task.source_model == root / "source.pt"
    assert str(task.masks) == str(root / "masks")


def test_the_examination_scores_the_held_out_images(root):
    prepared = prepare(root)
    examination = prepared.examination(CONFIG)
    assert examination.held_out == prepared.held_out
    assert examination.labelled == ()


def test_open_masks_are_not_pickled(root):
    prepared = prepare(root)
    assert "store" in vars(prepared)
    copied = pickle.loads(pickle.dumps(prepared))
    assert "store" not in vars(copied)
    assert copied == prepared
    assert set(copied.store.ids()) == set(prepared.store.ids())


def test_all_images_held_out_leaves_nothing_to_train_on(root, monkeypatch):
    monkeypatch.setattr(
        "sfss_ray.train.training_inputs.split_target_images",
        lambda images, store, config: ([], images),
    )
    with pytest.raises(
        DataError, match=r"none of the 6 target images .*lower evaluation\.held_out"
    ):
        prepare(root)


def test_a_source_model_file_is_used_where_it_is(root, tmp_path):
    assert prepare(root).placed(tmp_path).source.path == root / "source.pt"
    assert list(tmp_path.iterdir()) == []
