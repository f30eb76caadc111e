"""Tests of recognising SegFormer checkpoints of transformers, against transformers' own logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mit_states as mit
import pytest
import torch
from checkpoint_files import random_images, refusal, write
from family_states import to_imagenet
from mit_states import State

pytest.importorskip("transformers", reason="pip install 'sfss-ray[transformers]'")

import transformers

from sfss_ray import load_source_model
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.errors import CheckpointError

SIZE = (64, 96)


@pytest.fixture(scope="module")
def plain() -> State:
    return mit.plain_encoder()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return random_images(SIZE, count=2)


def segformer(**config: Any) -> Any:
    """Build a network of transformers itself."""
    torch.manual_seed(0)
    network = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**config))
    network.decode_head.batch_norm.running_mean.uniform_(-0.1, 0.1)
    return network.eval()


@torch.no_grad()
def assert_logits(path: Path, reference: Any, images: torch.Tensor) -> Any:
    model = load_source_model(path)
    expected = mit.upsample(reference(to_imagenet(images)).logits, SIZE)
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-6)
    return model


@torch.no_grad()
def test_names_of_version_4(plain, images, tmp_path):
    from safetensors.torch import save_file

    head = mit.nvlabs_head()
    save_file(mit.transformers_4(plain, head), tmp_path / "model.safetensors")
    model = load_source_model(tmp_path / "model.safetensors")
    assert model.name == "segformer_b0"
    assert model.classes is CITYSCAPES_19
    stages = mit.encode(plain, to_imagenet(images), 1e-5, 1e-5)
    expected = mit.upsample(mit.nvlabs_logits(head, stages), SIZE)
    assert (model(images) - expected).abs().max() < 2e-5 * expected.abs().max()
    assert model.load_report.missing == model.load_report.unexpected == ()
    assert model.card.channel_order == "rgb"


def test_names_of_version_5(images, tmp_path):
    reference = segformer(num_labels=19)
    path = write(tmp_path / "pytorch_model.bin", reference.state_dict())
    assert_logits(path, reference, images)


def test_a_file_written_by_save_pretrained(tmp_path):
    reference = segformer(num_labels=19)
    reference.save_pretrained(tmp_path)
    network = load_source_model(tmp_path / "model.safetensors").network
    assert torch.equal(network.classifier.weight, reference.decode_head.classifier.weight)
    sums = [
        float(sum(p.detach().double().sum() for p in module.parameters()))
        for module in (network, reference)
    ]
    assert sums[0] == pytest.approx(sums[1], abs=1e-9)


def test_placeholder_names_leave_the_number_of_outputs(images, tmp_path):
    reference = segformer(num_labels=19)
    reference.save_pretrained(tmp_path)
    assert assert_logits(tmp_path, reference, images).classes is CITYSCAPES_19


def test_a_decode_head_of_another_width(images, tmp_path):
    reference = segformer(num_labels=19, decoder_hidden_size=96)
    reference.save_pretrained(tmp_path)
    model = assert_logits(tmp_path, reference, images)
    assert model.network.options == {"decoder_width": 96}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segformer")
    segformer(num_labels=19).save_pretrained(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("rescaled", [True, False])
def test_the_preprocessor_decides_mean_and_std(rescaled, folder, images):
    preprocessor = {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.5],
        "do_rescale": rescaled,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    mean, std = (torch.tensor(preprocessor[f"image_{n}"]).view(3, 1, 1) for n in ("mean", "std"))
    reference = segformer(num_labels=19)
    logits = reference((images * (1 if rescaled else 255) - mean) / std).logits
    expected = mit.upsample(logits, SIZE)
    torch.testing.assert_close(load_source_model(folder)(images), expected, rtol=1e-4, atol=1e-5)


def test_other_preprocessors_become_cards(folder):
    def card(**preprocessor: Any):
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        return load_source_model(folder).card

    assert card(do_normalize=False).std == (1.0, 1.0, 1.0)
    # (x * 255 / 127.5 - 1) / 1 maps [0, 1] to [-1, 1], as mean and std of 0.5 do.
    ones = card(image_mean=[1, 1, 1], image_std=[1, 1, 1], rescale_factor=1 / 127.5)
    assert ones.mean == ones.std == pytest.approx((0.5, 0.5, 0.5))
    (folder / "preprocessor_config.json").write_text('{"rescale_factor": 0}')
    assert "rescale_factor 0: allowed is a number above 0" in refusal(folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [1, 2]}')
    assert "image_mean [1, 2]: allowed are three numbers" in refusal(folder)
    (folder / "preprocessor_config.json").unlink()


def test_a_variant_with_a_config_is_left_to_the_networks_of_transformers(folder):
    path = folder / "config.json"
    original = path.read_text()
    path.write_text(json.dumps(json.loads(original) | {"sr_ratios": [4, 2, 2, 1]}))
    message = refusal(folder)
    assert "does not fit network 'transformers'" in message
    assert "of wrong shape" in message
    path.write_text(original)


def test_a_file_that_lacks_its_classifier_or_its_head(plain, tmp_path):
    network = mit.transformers_4(plain, mit.nvlabs_head())
    state = {k: v for k, v in network.items() if "classifier" not in k}
    with pytest.raises(CheckpointError, match=r"classifier decode_head\.classifier is missing"):
        load_source_model(write(tmp_path / "x.pth", state))
    state = {k: v for k, v in network.items() if k.startswith("segformer.")}
    with pytest.raises(CheckpointError, match="encoder alone"):
        load_source_model(write(tmp_path / "x.pth", state))
