"""Source checkpoints of the field: built from their key patterns, loaded, compared number by number."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from family_states import (
    State,
    bgr_255,
    counters,
    enlarged,
    forward,
    head,
    imagenet,
    prefixed,
    resnet101,
    shaken,
    with_small_variances,
)
from torch import Tensor
from torchvision.models import segmentation

from sfss_ray import Card, load_model, load_source_model, save_model
from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19, SYNTHIA_16
from sfss_ray.errors import CheckpointError, SfssError
from sfss_ray.models.families.keys import strip_wrappers, tensors_of

SIZE = (37, 50)  # odd, so that pooling which rounds up differs from pooling which rounds down
VOC_21 = ["background", *[f"thing {i}" for i in range(20)]]


@pytest.fixture(autouse=True)
def no_large_files_left(tmp_path: Path):
    """Each test writes files of 200 MB, and pytest keeps the folders of its last runs."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def body() -> State:
    return resnet101()


@pytest.fixture(scope="module")
def multi(body: State) -> State:
    """AdaptSegNet's DeeplabMulti: the auxiliary head on 1024 channels, the main one on 2048."""
    return body | head("layer5.", 19, 1024, seed=2) | head("layer6.", 19)


def written(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def assert_same(found: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().item()
    assert 0.1 < scale < 1e4
    assert (found - expected).abs().max().item() < 2e-4 * scale


@torch.no_grad()
def check_caffe(model: Any, state: State, head_name: str, images: Tensor, branches: int = 4):
    logits = forward(state, bgr_255(images), head_name, caffe=True, branches=branches)
    assert_same(model(images), enlarged(logits, SIZE))
    assert model.card.channel_order == "bgr"
    assert model.card.value_range == 255
    assert model.card.align_corners
    assert model.load_report.missing == ()
    assert model.load_report.unexpected == ()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_deeplab_multi_of_adaptsegnet_advent_and_hcl(prefix, multi, images, tmp_path):
    model = load_source_model(written(tmp_path / "x.pth", prefixed(prefix, multi)))
    check_caffe(model, multi, "layer6.", images)
    assert model.classes is CITYSCAPES_19
    assert model.name == "deeplabv2_resnet101"
    assert len(model.load_report.unused) == 8
    assert all(key.startswith("layer5.") for key in model.load_report.unused)
    assert "AdaptSegNet" in model.load_report.family
    assert model(images).shape == (1, 19, *SIZE)


def test_start_weights_with_the_prefix_scale(body, images, tmp_path):
    state = body | head("layer5.", 21)
    path = written(tmp_path / "x.pth", prefixed("Scale.", state) | {"fc.weight": torch.zeros(9, 9)})
    with pytest.raises(CheckpointError, match="has 21 outputs, and nothing says what they mean"):
        load_source_model(path)
    model = load_source_model(path, classes=VOC_21)
    check_caffe(model, state, "layer5.", images)
    assert model.classes.classes == tuple(VOC_21)
    assert model.load_report.unused == ("fc.weight",)


def test_a_single_head_in_a_state_dict_as_iapc_keeps_it(body, images, tmp_path):
    state = body | head("layer6.", 16)
    model = load_source_model(written(tmp_path / "x.pth", {"state_dict": state, "epoch": 4}))
    check_caffe(model, state, "layer6.", images)
    assert model.classes is SYNTHIA_16
    assert model.load_report.classes_from == "the number of outputs, 16"


def test_lightning_with_the_prefix_net_as_crots_keeps_it(body, images, tmp_path):
    state = body | head("layer5.", 19)
    content = {"state_dict": prefixed("net.", state), "global_step": 9, "callbacks": {}}
    model = load_source_model(written(tmp_path / "x.ckpt", content))
    check_caffe(model, state, "layer5.", images)


def test_a_head_that_summed_two_of_its_four_convolutions(body, images, tmp_path):
    """AdaptSegNet's loop returns early: the last two keep their start weights, N(0, 0.01)."""
    state = body | head("layer6.", 19)
    generator = torch.Generator().manual_seed(3)
    for i in (2, 3):
        key = f"layer6.conv2d_list.{i}.weight"
        state[key] = 0.01 * torch.randn(state[key].shape, generator=generator)
    model = load_source_model(written(tmp_path / "x.pth", state))
    check_caffe(model, state, "layer6.", images, branches=2)
    assert "summed two of four" in model.load_report.notes[0]


def test_a_head_at_its_start_sums_all_four(body, images, tmp_path):
    state = body | head("layer6.", 19)
    for key in [k for k in state if re.match(r"layer6.*weight", k)]:
        state[key] = 0.01 * torch.randn(state[key].shape)
    model = load_source_model(written(tmp_path / "x.pth", state))
    check_caffe(model, state, "layer6.", images)
    assert model.load_report.notes == ()


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module."])
def test_feature_extractor_and_classifier_of_fada_dtst_and_trsfuda(prefix, body, images, tmp_path):
    body = body | counters(body)
    classifier = head("", 19)
    content = {
        "iteration": 20000,
        "feature_extractor": prefixed(f"{prefix}backbone.", body),
        "classifier": prefixed(prefix, classifier),
        "discriminator": {"D.0.weight": torch.zeros(3)},
        "optimizer_fea": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": []},
    }
    model = load_source_model(written(tmp_path / "model_iter020000.pth", content))
    logits = forward(body | classifier, imagenet(images), "", caffe=False)
    assert_same(model(images), enlarged(logits, SIZE))
    assert model.card.channel_order == "rgb"
    assert model.card.align_corners
    assert model.load_report.unused == ("discriminator.D.0.weight",)
    assert model.load_report.notes == ()
    assert len(model.load_report.matched) == len(body) + len(classifier)


@torch.no_grad()
@pytest.mark.parametrize(("lowest", "highest"), [(1e-4, 1e-2), (1e-9, 1e-5)])
def test_batch_norm_that_was_frozen_without_an_epsilon(lowest, highest, body, images, tmp_path):
    """The logits of DT-ST's and TRSFUDA's code, also of the model file made from it."""
    body, classifier = with_small_variances(body, lowest, highest), head("", 19)
    content = {"feature_extractor": prefixed("backbone.", body), "classifier": classifier}
    model = load_source_model(written(tmp_path / "x.pth", content))
    state, prepared = body | classifier, imagenet(images)
    makers = enlarged(forward(state, prepared, "", caffe=False, epsilon=0.0), SIZE)
    ordinary = enlarged(forward(state, prepared, "", caffe=False), SIZE)
    assert (ordinary - makers).abs().mean() > 0.01 * makers.abs().mean()  # the epsilon shows
    saved = load_model(save_model(tmp_path / "student.pt", model))
    for found in (model(images), saved(images)):
        assert (found - makers).abs().max() < 1e-4 * makers.abs().max()
        assert (found.argmax(1) == makers.argmax(1)).all()
    assert "frozen without an epsilon" in model.load_report.notes[0]


def test_channels_without_variance_stay_finite(body, images, tmp_path):
    body = body | {"bn1.running_var": torch.zeros(64)}
    content = {"feature_extractor": prefixed("backbone.", body), "classifier": head("", 19)}
    model = load_source_model(written(tmp_path / "x.pth", content))
    assert model.network.state_dict()["body.backbone.bn1.weight"].equal(body["bn1.weight"])


@pytest.mark.parametrize("whose", ["AdaptSegNet's", "FADA's"])
def test_vgg_checkpoints_are_refused_by_name(whose, tmp_path):
    features = {
        "0.weight": torch.zeros(64, 3, 3, 3),
        "29.weight": torch.zeros(1024, 512, 3, 3),
        "31.bias": torch.zeros(1024),
    }
    classifier = head("", 19, 1024)
    content = prefixed("features.", features) | prefixed("classifier.", classifier)
    if whose == "FADA's":
        content = {
            "feature_extractor": prefixed("module.backbone.", features),
            "classifier": prefixed("module.", classifier),
        }
    message = refusal(written(tmp_path / "x.pth", content))
    assert f"{whose} VGG16 DeepLab is not supported: supported are" in message
    assert "ResNet-101" in message


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "deeplabv3_mobilenet_v3_large",
        "deeplabv3_resnet50",
        "deeplabv3_resnet101",
        "fcn_resnet50",
        "fcn_resnet101",
        "lraspp_mobilenet_v3_large",
    ],
)
def test_torchvision_models_give_torchvisions_logits(name, images, tmp_path):
    torch.manual_seed(0)
    auxiliary = {} if name.startswith("lraspp") else {"aux_loss": True}
    builder = getattr(segmentation, name)
    reference = builder(weights=None, weights_backbone=None, num_classes=11, **auxiliary)
    shaken(reference)
    path = written(tmp_path / "x.pth", {"model": reference.state_dict(), "epoch": 1})
    model = load_source_model(path)
    expected = reference.eval()(imagenet(images))["out"]
    assert (model(images) - expected).abs().max() < 2e-4 * expected.abs().max()
    assert model.name == name
    assert model.classes is CAMVID_11
    assert model.load_report.unexpected == ()
    assert all(key.startswith("aux_classifier.") for key in model.load_report.unused)


@pytest.mark.parametrize(
    ("key", "stripped"),
    [
        ("module.conv1.weight", "conv1.weight"),
        ("net.conv1.weight", "conv1.weight"),
        ("module.net.conv1.weight", "conv1.weight"),
        ("model.backbone.x", "backbone.x"),
        ("module.model.module.backbone.x", "backbone.x"),
        ("ema_model.backbone.x", "ema_model.backbone.x"),
        ("imnet_model.backbone.x", "imnet_model.backbone.x"),
        ("backbone.module.x", "backbone.module.x"),
        ("subnet.x", "subnet.x"),
        ("_orig_mod.conv1.weight", "conv1.weight"),
        ("_orig_mod.module.conv1.weight", "conv1.weight"),
        ("module._orig_mod.conv1.weight", "conv1.weight"),
        ("model._orig_mod.backbone.x", "backbone.x"),
        ("model.backbone._orig_mod.layer1.x", "backbone.layer1.x"),
        ("my_orig_mod.x", "my_orig_mod.x"),
    ],
)
def test_wrappers_are_stripped_from_the_start_alone(key, stripped):
    assert strip_wrappers(key) == stripped


def test_tensors_are_found_in_every_container():
    weight = torch.zeros(1)
    for name in ("state_dict", "model_state_dict", "model", "net"):
        assert list(tensors_of({name: {"a.b": weight}, "epoch": 3})) == ["a.b"]
    assert list(tensors_of({"f": {"module.a": weight}, "g": {"b": weight}})) == ["f.a", "g.b"]
    assert tensors_of([weight]) == {}
    assert tensors_of({"state_dict": {}, "epoch": 3}) == {}


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(SfssError) as refused:
        load_source_model(path, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    "key", ["layer3.17.conv2.weight", "layer6.conv2d_list.2.bias", "bn1.running_var"]
)
def test_a_missing_tensor_of_backbone_or_classifier_is_refused(key, multi, tmp_path):
    state = dict(multi)
    del state[key]
    message = refusal(written(tmp_path / "x.pth", state))
    assert "1 tensors missing" in message
    assert "so it is incomplete: copy it again" in message
    assert key.removeprefix("layer6.") in message


def test_a_tensor_of_another_shape_is_refused(multi, tmp_path):
    state = multi | {"layer1.0.conv1.weight": torch.zeros(64, 32, 1, 1)}
    message = refusal(written(tmp_path / "x.pth", state))
    assert "1 of wrong shape" in message
    assert "body.layer1.0.conv1.weight is (64, 32, 1, 1), not (64, 64, 1, 1)" in message
    assert "so it is a variant that this package does not build" in message


def test_unexpected_tensors_are_reported_and_not_refused(multi, tmp_path):
    state = multi | {"layer7.weight": torch.zeros(2), "ema_decay": torch.zeros(1)}
    report = load_source_model(written(tmp_path / "x.pth", state)).load_report
    assert report.unexpected == ("body.layer7.weight",)
    assert "ema_decay" in report.unused
    assert "1 unexpected" in report.summary()


def test_counters_are_welcome_and_not_missed(body, tmp_path):
    """Files of frozen BatchNorm have no counters; those of trained ones do."""
    state = body | head("layer6.", 19)
    without = load_source_model(written(tmp_path / "a.pth", state)).load_report
    assert without.missing == without.unexpected == ()
    counted = load_source_model(written(tmp_path / "b.pth", state | counters(state))).load_report
    assert counted.missing == counted.unexpected == ()
    assert len(counted.matched) == len(without.matched) + len(counters(state))


def test_a_backbone_alone_is_refused(body, tmp_path):
    path = written(tmp_path / "x.pth", body | {"fc.weight": torch.zeros(10, 2048)})
    assert "a ResNet backbone alone" in refusal(path)
    only_auxiliary = written(tmp_path / "y.pth", body | head("layer5.", 19, 1024))
    assert "layer6.conv2d_list is missing" in refusal(only_auxiliary)


def test_unknown_families_are_refused_with_the_known_ones(tmp_path):
    message = refusal(written(tmp_path / "x.pth", {"encoder.a": torch.zeros(1)}))
    assert "of no known family (found: encoder.a)" in message
    assert "AdaptSegNet" in message
    assert "wrap_model" in message
    assert "no tensors, but epoch" in refusal(written(tmp_path / "y.pth", {"epoch": 3}))
    assert "a list" in refusal(written(tmp_path / "z.pth", [1]))


def test_19_outputs_become_16_by_name(multi, images, tmp_path):
    path = written(tmp_path / "x.pth", multi)
    whole, fewer = load_source_model(path), load_source_model(path, classes="synthia-16")
    assert fewer.classes is SYNTHIA_16
    rows = [CITYSCAPES_19.classes.index(name) for name in SYNTHIA_16.classes]
    assert rows != list(range(16))
    with torch.no_grad():
        kept = whole(images)[:, rows]
        # Random weights give logits of hundreds, sums whose rounding goes with their size.
        assert torch.allclose(fewer(images), kept, atol=1e-6 * kept.abs().max().item(), rtol=1e-4)
    assert fewer.card == Card.from_dict(whole.card.to_dict() | {"classes": SYNTHIA_16.classes})
    assert "has 19 outputs but 2 classes were given, and it has no class 'boat'" in refusal(
        path, classes=["road", "boat"]
    )
    assert "outputs but 21 classes" in refusal(path, classes=VOC_21)


def test_a_given_card_replaces_entries_of_the_familys(multi, images, tmp_path):
    path = written(tmp_path / "x.pth", multi)
    card = tmp_path / "card.json"
    card.write_text('{"channel_order": "rgb", "align_corners": false}')
    model = load_source_model(path, card=card)
    assert (model.card.channel_order, model.card.value_range) == ("rgb", 255)
    with torch.no_grad():
        mean = torch.tensor(model.card.mean).view(1, 3, 1, 1)
        straight = forward(multi, images * 255 - mean, "layer6.", caffe=True)
        expected = torch.nn.functional.interpolate(straight, SIZE, mode="bilinear")
        assert_same(model(images), expected)


def test_a_saved_foreign_model_keeps_its_preprocessing(multi, images, tmp_path):
    model = load_source_model(written(tmp_path / "x.pth", multi), card={"align_corners": False})
    path = save_model(tmp_path / "student.pt", model)
    for again in (load_model(path), load_source_model(path)):
        assert again.card == model.card
        with torch.no_grad():
            assert torch.equal(again(images), model(images))
    content = torch.load(path, weights_only=True)
    assert content["card"] == model.card.to_dict()


def test_safetensors_are_read_by_content(body, images, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    state = body | head("layer6.", 19)
    safetensors.save_file(state, tmp_path / "renamed.pth")
    check_caffe(load_source_model(tmp_path / "renamed.pth"), state, "layer6.", images)
