"""Tests of folders that transformers wrote for networks of many architectures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import random_images, refusal

pytest.importorskip("transformers", reason="pip install 'sfss-ray[transformers]'")

import transformers
import transformers_models as models
from torch.nn import functional as F

from sfss_ray import load_model, load_source_model, save_model
from sfss_ray.models.source import open_source

SIZE = (64, 64)
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return random_images(SIZE, count=2)


def saved(model: Any, folder: Path, **options: Any) -> Path:
    """Save a model and the entries of its preprocessor, HALF, into a folder."""
    model.save_pretrained(folder, **options)
    (folder / "preprocessor_config.json").write_text(json.dumps(HALF))
    return folder


def with_config(folder: Path, **changes: Any) -> Path:
    """Change entries of a folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@torch.no_grad()
@pytest.mark.parametrize("builder", models.SEMANTIC)
def test_a_folder_gives_the_logits_of_transformers_and_a_model_file(builder, images, tmp_path):
    reference = models.make(builder)
    folder = saved(reference, tmp_path / "m")
    model = load_source_model(folder)
    expected = F.interpolate(reference((images - 0.5) / 0.5).logits, SIZE, mode="bilinear")
    if model.card.channel_order == "bgr":  # MobileViT
        expected = reference((images.flip(1) - 0.5) / 0.5).logits
        expected = F.interpolate(expected, SIZE, mode="bilinear")
    assert float(expected.std()) > 0.005
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    assert model.classes.classes == models.CLASSES
    report = model.load_report
    assert report.missing == report.unexpected == report.wrong_shape == ()
    assert report.family == f"{type(reference).__name__} (Hugging Face)"

    path = save_model(tmp_path / "student.pt", model)
    shutil.rmtree(folder)
    again = load_model(path)
    assert torch.equal(again(images), model(images))
    assert again.card == model.card


@torch.no_grad()
@pytest.mark.parametrize("builder", models.UNIVERSAL)
def test_a_universal_network_predicts_as_its_image_processor(builder, images, tmp_path):
    reference = models.make(builder)
    model = load_source_model(saved(reference, tmp_path / "m"))
    inputs: dict[str, Any] = {"pixel_values": (images - 0.5) / 0.5}
    if builder is models.oneformer:
        tokens = [49406, 518, 10549, 533, 29119, 1550, 49407]
        inputs["task_inputs"] = torch.tensor([tokens + [0] * 70] * 2)
    output = reference(**inputs)
    classes = output.class_queries_logits.softmax(-1)[..., :-1]
    scores = torch.einsum("bqc,bqhw->bchw", classes, output.masks_queries_logits.sigmoid())
    logits = model.network(images).logits
    torch.testing.assert_close(logits.exp(), scores, rtol=1e-4, atol=1e-5)
    again = load_model(save_model(tmp_path / "student.pt", model))
    assert torch.equal(again(images), model(images))


@torch.no_grad()
def test_a_safetensors_file_is_read_with_the_config_beside_it(images, tmp_path):
    folder = saved(models.make(models.upernet_swin), tmp_path / "m")
    expected = load_source_model(folder)(images)
    assert torch.equal(load_source_model(folder / "model.safetensors")(images), expected)
    renamed = (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert torch.equal(load_source_model(renamed)(images), expected)


@torch.no_grad()
def test_shards_and_half_precision(images, tmp_path):
    model = models.make(models.upernet_convnext)
    expected = load_source_model(saved(model, tmp_path / "m"))(images)
    sharded = saved(model.half(), tmp_path / "s", max_shard_size="20KB")
    shards = sorted(sharded.glob("model-*.safetensors"))
    assert len(shards) > 2
    loaded = load_source_model(sharded)
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    torch.testing.assert_close(loaded(images), expected, rtol=0.02, atol=0.02)
    shards[1].unlink()
    message = f"lacks 1 of its {len(shards)} shards, first {shards[1].name!r}: copy the whole"
    assert message in refusal(sharded)


@torch.no_grad()
def test_some_classes_are_kept_by_name(images, tmp_path):
    for builder in (models.dpt, models.eomt):
        folder = saved(models.make(builder), tmp_path / builder.__name__)
        model = load_source_model(folder)
        fewer = load_source_model(folder, classes=["grey", "red"])
        assert fewer.classes.classes == ("grey", "red")
        torch.testing.assert_close(fewer(images), model(images)[:, [4, 0]])
        again = load_model(save_model(tmp_path / "x.pt", fewer))
        single = load_source_model(tmp_path / "x.pt", classes=["red"])
        torch.testing.assert_close(single(images), again(images)[:, 1:])


def test_placeholder_names_need_classes(tmp_path):
    names = {i: f"LABEL_{i}" for i in range(5)}
    folder = with_config(saved(models.make(models.beit), tmp_path / "m"), id2label=names)
    assert "has 5 outputs, and nothing says what they mean" in refusal(folder)
    assert len(load_source_model(folder, classes=list("abcde")).classes) == 5


def test_notes_tell_the_size_and_reduced_labels(tmp_path):
    folder = saved(models.make(models.beit), tmp_path / "m")
    entries = HALF | {"do_reduce_labels": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(entries))
    reduced, size = load_source_model(folder).load_report.notes
    assert "(do_reduce_labels): its output 0 is id 1" in reduced
    assert "takes images of 64x64 pixels only" in size
    assert open_source(folder).origin == str(folder)


def test_loading_neither_prints_nor_changes_random_numbers(tmp_path, capfd):
    folder = saved(models.make(models.upernet_swin), tmp_path / "m")
    capfd.readouterr()
    verbosity = transformers.logging.get_verbosity()
    load_source_model(folder)
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.get_verbosity() == verbosity


def test_weights_of_another_width_are_refused(tmp_path):
    folder = with_config(saved(models.make(models.upernet_swin), tmp_path / "m"), hidden_size=24)
    message = refusal(folder)
    assert "does not fit network 'transformers' of the family 'UperNetForSemantic" in message
    assert "of wrong shape, first body.decode_head." in message


def test_missing_tensors_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = saved(models.make(models.mask2former), tmp_path / "m")
    path = folder / "model.safetensors"
    state = load_file(path)
    del state["class_predictor.weight"]
    save_file(state, path, {"format": "pt"})
    assert "1 tensors missing, first 'body.class_predictor.weight'" in refusal(folder)


def test_more_or_fewer_classes_than_the_config_says(tmp_path):
    names = {i: f"kind {i}" for i in range(7)}
    folder = with_config(saved(models.make(models.dpt), tmp_path / "m"), id2label=names)
    assert "body.head.head.4.weight is (5, 12, 1, 1), not (7, 12, 1, 1)" in refusal(folder)


@pytest.mark.parametrize("builder", [models.upernet_convnext, models.dpt])
def test_weights_without_their_config_json_say_what_is_missing(builder, tmp_path):
    folder = saved(models.make(builder), tmp_path / "m")
    (folder / "config.json").unlink()
    message = refusal(folder / "model.safetensors")
    assert "a model of transformers needs the config.json of its folder" in message


def test_folders_of_other_tasks_are_refused(tmp_path):
    folder = with_config(
        saved(models.make(models.beit), tmp_path / "m"),
        architectures=["BeitForImageClassification"],
    )
    message = refusal(folder)
    assert "its config.json is that of BeitForImageClassification (model_type 'beit')" in message
    assert "any other network can be given in Python with sfss_ray.wrap_model" in message
    with_config(folder, architectures=["NoSuchForSemanticSegmentation"])
    assert "has no segmentation network 'NoSuchForSemanticSegmentation'" in refusal(folder)
    with_config(folder, architectures=None)
    assert "its config.json is that of no class" in refusal(folder)


def test_the_ema_copy_of_a_folder_is_refused(tmp_path):
    folder = saved(models.make(models.upernet_convnext), tmp_path / "m")
    assert "holds no EMA copy" in refusal(folder, weights="ema")


def test_a_segformer_that_this_package_does_not_build_is_read_too(images, tmp_path):
    model = load_source_model(saved(models.make(models.segformer), tmp_path / "m"))
    assert model.name == "transformers"
