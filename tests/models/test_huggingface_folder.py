"""Tests of reading the folder that `save_pretrained` of transformers writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import random_images, refusal
from torch.nn import functional as F

pytest.importorskip("transformers", reason="pip install 'sfss-ray[transformers]'")

import transformers

from sfss_ray import load_source_model
from sfss_ray.models.huggingface_folder import CONFIG, PREPROCESSOR, read_folder, source_files
from sfss_ray.models.reading import read_checkpoint
from sfss_ray.models.source import open_source

SIZE = (64, 96)
CLASS_NAMES = {i: f"kind {i}" for i in range(7)}


@pytest.fixture(scope="module")
def reference() -> Any:
    """A network of transformers itself."""
    torch.manual_seed(0)
    config = transformers.SegformerConfig(id2label=CLASS_NAMES)
    network = transformers.SegformerForSemanticSegmentation(config)
    network.decode_head.batch_norm.running_mean.uniform_(-0.1, 0.1)
    return network.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return random_images(SIZE)


@torch.no_grad()
def assert_logits(path: Path, reference: Any, images: torch.Tensor) -> Any:
    """Check the logits of a folder against those of transformers itself, and return the model."""
    model = load_source_model(path)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = F.interpolate(reference((images - mean) / std).logits, SIZE, mode="bilinear")
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-6)
    return model


@pytest.fixture
def sharded(reference: Any, tmp_path: Path) -> Path:
    reference.save_pretrained(tmp_path / "m", max_shard_size="4MB")
    assert len(list((tmp_path / "m").glob("model-*-of-*.safetensors"))) > 2
    return tmp_path / "m"


def test_a_folder_with_one_file_of_weights(reference, images, tmp_path):
    reference.save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        model = assert_logits(path, reference, images)
        assert model.classes.classes == tuple(CLASS_NAMES.values())
        assert model.load_report.classes_from == "the file"


def test_a_folder_of_shards(sharded, reference, images):
    assert assert_logits(sharded, reference, images).classes.classes[6] == "kind 6"


@pytest.mark.parametrize("shards", [1, 3])
def test_pytorch_model_bin(shards, reference, images, tmp_path):
    reference.config.save_pretrained(tmp_path)
    state = list(reference.state_dict().items())
    if shards == 1:
        torch.save(dict(state), tmp_path / "pytorch_model.bin")
    else:
        shard_of_tensor = {}
        for i in range(shards):
            name = f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
            torch.save(dict(state[i::shards]), tmp_path / name)
            shard_of_tensor |= dict.fromkeys(dict(state[i::shards]), name)
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": shard_of_tensor}))
    assert_logits(tmp_path, reference, images)


def test_both_json_files_are_returned_beside_the_weights(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "segformer"}')
    (tmp_path / "preprocessor_config.json").write_text('{"do_rescale": false}')
    (tmp_path / "pytorch_model.bin").touch()
    content = read_folder(tmp_path, lambda path: {path.name: 1})
    assert content == {
        "state_dict": {"pytorch_model.bin": 1},
        CONFIG: {"model_type": "segformer"},
        PREPROCESSOR: {"do_rescale": False},
    }
    names = ["config.json", "preprocessor_config.json", "pytorch_model.bin"]
    assert [path.name for path in source_files(tmp_path)] == names


def test_other_weights_beside_a_config_json_are_read_alone(tmp_path: Path):
    (tmp_path / "config.json").write_text("{")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert list(read_checkpoint(tmp_path / "pytorch_model.bin")) == ["conv.weight"]


def test_a_folder_is_the_source_model_of_a_run(sharded, images, tmp_path):
    source = open_source(sharded)
    placed = source.placed(tmp_path)
    with torch.no_grad():
        assert torch.equal(placed.load()(images), load_source_model(sharded)(images))
    assert source.origin == str(sharded)
    shard = sorted(sharded.glob("model-*"))[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    assert open_source(sharded).sha256 != source.sha256


def test_incomplete_folders_are_refused(sharded, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is a folder without config.json" in refusal(tmp_path / "empty")
    shutil.copy(sharded / "config.json", tmp_path / "empty")
    assert "holds config.json but no weights (model.safetensors" in refusal(tmp_path / "empty")
    shards = sorted(sharded.glob("model-*"))
    removed = shards[1]
    content = removed.read_bytes()
    removed.unlink()
    assert f"lacks 1 of its {len(shards)} shards, first {removed.name!r}" in refusal(sharded)
    removed.write_bytes(content[:100])
    assert f"{removed.name}' cannot be read" in refusal(sharded)
    removed.write_bytes(shards[0].read_bytes())
    assert "are in no shard, first" in refusal(sharded)
    assert "is one of several shards: give its folder" in refusal(removed)
    index = sharded / "model.safetensors.index.json"
    assert "index.json' is the index of several shards: give its folder" in refusal(index)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    assert "has no weight_map" in refusal(sharded)
    (sharded / "config.json").write_text("{")
    index.unlink()
    (sharded / "model.safetensors").write_bytes(shards[0].read_bytes())
    assert "config.json cannot be read (it is not JSON)" in refusal(sharded)
    (sharded / "config.json").write_text("[]")
    assert "config.json is not a JSON object" in refusal(sharded)
