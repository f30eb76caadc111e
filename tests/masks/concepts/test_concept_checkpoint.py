"""Folders of a SAM 3 that takes text: what is loaded, and one line for what cannot be used."""

import json
import shutil

import numpy as np
import pytest
import torch
from concept_models import concept_model, save_concept_model, tokenizer
from family_models import sam3

from sfss_ray.errors import CheckpointError, ConfigError
from sfss_ray.masks.concepts.concept_checkpoint import (
    concept_sha256,
    load_concepts,
    resolve_concept_checkpoint,
)
from sfss_ray.masks.concepts.sam3_concepts import Sam3Concepts

IMAGE = np.random.default_rng(1).integers(0, 255, (40, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_concept_model(tmp_path_factory.mktemp("sam3"))


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def scores(model):
    (instances,) = model.find(IMAGE, model.encode_prompts(["street lamp"]), 0.0)
    return [instance.score for instance in instances]


def test_a_folder_gives_the_network_that_was_saved(saved):
    loaded = load_concepts(resolve_concept_checkpoint(saved))
    expected = Sam3Concepts(concept_model(), tokenizer(), loaded.processor)
    assert scores(loaded) == pytest.approx(scores(expected), abs=1e-6)
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_a_folder_without_an_image_processor_uses_the_size_of_the_network(folder, saved):
    (folder / "preprocessor_config.json").unlink()
    expected = pytest.approx(scores(load_concepts(saved)), abs=1e-6)
    assert scores(load_concepts(folder)) == expected


def test_the_hash_covers_weights_configuration_and_tokenizer(folder):
    hashes = [concept_sha256(folder)]
    for name in ("tokenizer.json", "config.json", "preprocessor_config.json"):
        (folder / name).write_text((folder / name).read_text() + " ")
        hashes.append(concept_sha256(folder))
    shutil.rmtree(folder)
    save_concept_model(folder, seed=6)
    hashes.append(concept_sha256(folder))
    assert len(set(hashes)) == len(hashes)


def without(*names):
    def spoil(folder):
        for name in names:
            (folder / name).unlink()

    return spoil


def of_type(model_type):
    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))

    return spoil


def tracker(folder):
    shutil.rmtree(folder)
    sam3().save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (tracker, "holds SAM 3's tracker alone (sam3_tracker), which takes points and no text"),
        (of_type("sam2"), "holds a network of type 'sam2'; allowed are sam3 and sam3_video"),
        (without("config.json"), "has no config.json: give a folder that save_pretrained"),
        (without("tokenizer.json"), "has no tokenizer, which turns class names into prompts"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json in"),
    ],
)
def test_folders_without_text_prompts_are_refused_in_one_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(CheckpointError) as error:
        resolve_concept_checkpoint(folder)
    assert str(error.value).startswith("masks.concepts: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_weights_are_refused_in_one_line(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds config\.json but no weights"):
        concept_sha256(folder)
    with pytest.raises(CheckpointError, match="cannot be loaded as transformers' Sam3Model"):
        load_concepts(folder)


def test_weights_that_lack_tensors_are_refused_in_one_line(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    state = {k: v for k, v in load_file(path).items() if not k.startswith("text_projection")}
    save_file(state, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 2 tensors .* first 'text_projection\.bias'"):
        load_concepts(folder)


def test_a_hub_name_is_looked_up_in_the_cache_only(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as error:
        resolve_concept_checkpoint("facebook/sam3")
    assert "masks.concepts: 'facebook/sam3'" in str(error.value)
    assert "hf download facebook/sam3" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hub_name_needs_its_package(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"masks.concepts: .*pip install"):
        resolve_concept_checkpoint("facebook/sam3")
