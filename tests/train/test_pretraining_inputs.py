"""Checked inputs of a pretraining: pairs, class set, and what decides a run."""

import pytest
import torch
from train_samples import CLASSES, small_config, tile_labels, write_dataset, write_image

from sfss_ray.config import Config, override
from sfss_ray.data.class_sets import class_set_of
from sfss_ray.errors import ConfigError, DataError
from sfss_ray.train.pretraining_inputs import LabelledFolders, check_pretraining

CONFIG = override(small_config(), {"pretrain.batch_size": 2})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("labelled"), 4)


def check(root, config=CONFIG, **validation):
    folders = LabelledFolders(root / "images", root / "labels", **validation)
    return check_pretraining(folders, class_set_of(CLASSES), config, str)


def test_pairs_network_and_class_set_are_checked(root):
    inputs = check(root)
    assert [pair.image_id for pair in inputs.training] == ["0", "1", "2", "3"]
    assert inputs.labelled == ()
    assert inputs.examination(CONFIG) is None
    assert inputs.white_level is None
    assert inputs.network(torch.rand(1, 3, 64, 64)).logits.shape[1] == len(CLASSES)


def test_validation_pairs_are_scored_and_are_input_files(root):
    inputs = check(root, val_images=root / "images", val_labels=root / "labels")
    examination = inputs.examination(CONFIG)
    assert examination is not None
    assert examination.labelled == inputs.labelled
    assert len(inputs.files()) == 2 * 4 + 2 * 4
    assert inputs.files()["training labels/2"] == root / "labels" / "2.png"


def test_the_record_has_what_decides_the_result(root):
    record = check(root).record(CONFIG)
    assert record["inputs.images"] == 4
    assert record["inputs.classes"] == list(CLASSES)
    assert record["seed"] == CONFIG.seed
    other = override(CONFIG, {"pretrain.optim.learning_rate": 0.5})
    changed = check(root, other).record(other)
    assert {k for k in record if record[k] != changed[k]} == {"pretrain.optim.learning_rate"}


def test_the_record_names_the_classes_and_the_white_level_of_the_training_labels(root):
    names = ",".join(CLASSES)
    orders = [names, ",".join(CLASSES[::-1])]
    configs = [override(CONFIG, {"labels_classes": order}) for order in orders]
    records = [check(root, config).record(config) for config in configs]
    assert records[0]["inputs.label_classes"] == list(CLASSES)
    assert {k for k in records[0] if records[0][k] != records[1][k]} == {"inputs.label_classes"}
    assert records[0]["inputs.white_level"] is None


def test_the_crop_is_chosen_from_the_labelled_images(root):
    lines: list[str] = []
    folders = LabelledFolders(root / "images", root / "labels")
    inputs = check_pretraining(
        folders, class_set_of(CLASSES), override(Config(), {"seed": 3}), lines.append
    )
    assert inputs.config.pretrain.augment.crop_size == (32, 32)  # 3/4 of 64x64 is no multiple of 32
    assert inputs.config.train.augment.crop_size is None
    assert inputs.record(inputs.config)["pretrain.augment.crop_size"] == [32, 32]
    assert any(line.startswith("crops: 32x32 (height x width), chosen") for line in lines)


def test_pairs_of_different_sizes_are_left_out_and_reported(tmp_path):
    root, lines = write_dataset(tmp_path, 3), []
    write_image(root / "labels" / "1.png", tile_labels(1)[:32])
    folders = LabelledFolders(root / "images", root / "labels")
    inputs = check_pretraining(folders, class_set_of(CLASSES), CONFIG, lines.append)
    assert [pair.image_id for pair in inputs.training] == ["0", "2"]
    assert any("1" in line and "size" in line for line in lines)


def test_wrong_inputs_are_refused(root):
    with pytest.raises(ConfigError, match="resnet_18"):
        check(root, override(CONFIG, {"pretrain.network": "resnet_18"}))
    with pytest.raises(ConfigError, match="batch_size"):
        check(root, override(CONFIG, {"compute.num_workers": 3}))
    with pytest.raises(DataError, match="val_images were given without val_labels"):
        check(root, val_images=root / "images")
