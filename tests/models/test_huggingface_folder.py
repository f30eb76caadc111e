"""Folders that save_pretrained of transformers writes, against transformers' own logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("transformers", reason="pip install 'sfss-ray[transformers]'")

import transformers

from sfss_ray import load_source_model
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.errors import CheckpointError
from sfss_ray.models.source import open_source

SIZE = (64, 96)
NAMES = {i: f"kind {i}" for i in range(7)}


def segformer(**config: Any) -> Any:
    torch.manual_seed(0)
    made = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**config))
    made.decode_head.batch_norm.running_mean.uniform_(-0.1, 0.1)
    return made.eval()


@pytest.fixture(scope="module")
def theirs() -> Any:
    return segformer(id2label=NAMES)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def assert_logits(path: Path, theirs: Any, images: torch.Tensor) -> Any:
    model = load_source_model(path)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = F.interpolate(theirs((images - mean) / std).logits, SIZE, mode="bilinear")
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-6)
    return model


@pytest.fixture
def sharded(theirs: Any, tmp_path: Path) -> Path:
    theirs.save_pretrained(tmp_path / "m", max_shard_size="4MB")
    assert len(list((tmp_path / "m").glob("model-*-of-*.safetensors"))) > 2
    return tmp_path / "m"


def test_a_folder_of_one_file(theirs, images, tmp_path):
    theirs.save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        model = assert_logits(path, theirs, images)
        assert model.classes.classes == tuple(NAMES.values())
        assert model.load_report.classes_from == "the file"


def test_a_folder_of_shards(sharded, theirs, images):
    assert assert_logits(sharded, theirs, images).classes.classes[6] == "kind 6"


@pytest.mark.parametrize("shards", [1, 3])
def test_pytorch_model_bin(shards, theirs, images, tmp_path):
    theirs.config.save_pretrained(tmp_path)
    state = list(theirs.state_dict().items())
    if shards == 1:
        torch.save(dict(state), tmp_path / "pytorch_model.bin")
    else:
        places = {}
        for i in range(shards):
            name = f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
            torch.save(dict(state[i::shards]), tmp_path / name)
            places |= dict.fromkeys(dict(state[i::shards]), name)
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_logits(tmp_path, theirs, images)


def test_names_that_say_nothing_leave_the_number_of_outputs(images, tmp_path):
    theirs = segformer(num_labels=19)
    theirs.save_pretrained(tmp_path)
    assert assert_logits(tmp_path, theirs, images).classes is CITYSCAPES_19


@torch.no_grad()
@pytest.mark.parametrize("rescaled", [True, False])
def test_the_preprocessor_decides_mean_and_std(rescaled, theirs, images, tmp_path):
    theirs.save_pretrained(tmp_path)
    processor = {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.5],
        "do_rescale": rescaled,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    mean, std = (torch.tensor(processor[f"image_{n}"]).view(3, 1, 1) for n in ("mean", "std"))
    expected = theirs((images * (1 if rescaled else 255) - mean) / std).logits
    expected = F.interpolate(expected, SIZE, mode="bilinear")
    torch.testing.assert_close(load_source_model(tmp_path)(images), expected, rtol=1e-4, atol=1e-5)


def test_a_decode_head_of_another_width(images, tmp_path):
    theirs = segformer(num_labels=19, decoder_hidden_size=96)
    theirs.save_pretrained(tmp_path)
    assert assert_logits(tmp_path, theirs, images).network.options == {"decoder_width": 96}


def test_a_run_takes_a_folder(sharded, theirs, images, tmp_path):
    source = open_source(sharded)
    placed = source.placed(tmp_path)
    with torch.no_grad():
        assert torch.equal(placed.load()(images), load_source_model(sharded)(images))
    assert source.origin == str(sharded)
    shard = sorted(sharded.glob("model-*"))[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    assert open_source(sharded).sha256 != source.sha256


def edit(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        load_source_model(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_incomplete_folders_are_named(sharded, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is a folder without config.json" in refusal(tmp_path / "empty")
    shutil.copy(sharded / "config.json", tmp_path / "empty")
    assert "holds config.json but no weights (model.safetensors" in refusal(tmp_path / "empty")
    number = len(list(sharded.glob("model-*")))
    lost = sorted(sharded.glob("model-*"))[1]
    content = lost.read_bytes()
    lost.unlink()
    assert f"lacks 1 of its {number} shards, first {lost.name!r}" in refusal(sharded)
    lost.write_bytes(content[:100])
    assert f"{lost.name}' cannot be read" in refusal(sharded)
    lost.write_bytes(sorted(sharded.glob("model-*"))[0].read_bytes())
    assert "are in no shard, first" in refusal(sharded)
    assert "is one of several shards: give its folder" in refusal(lost)
    index = sharded / "model.safetensors.index.json"
    assert "index.json' is the index of several shards: give its folder" in refusal(index)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    assert "has no weight_map" in refusal(sharded)
    (sharded / "config.json").write_text("{")
    index.unlink()
    (sharded / "model.safetensors").write_bytes(sorted(sharded.glob("model-*"))[0].read_bytes())
    assert "config.json cannot be read (it is no JSON)" in refusal(sharded)


def test_other_networks_are_named(sharded):
    edit(sharded, sr_ratios=[4, 2, 2, 1])
    assert "has sr_ratios [4, 2, 2, 1]: known is [8, 4, 2, 1]" in refusal(sharded)
    edit(sharded, model_type="mask2former", architectures=["Mask2FormerForUniversalSegmentation"])
    assert "that of Mask2FormerForUniversalSegmentation" in refusal(sharded)
