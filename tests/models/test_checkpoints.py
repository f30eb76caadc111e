"""Tests of loading source checkpoints: refusals, classes, cards, and the report of all tensors."""

from __future__ import annotations

import pytest
import torch
from checkpoint_files import assert_close, random_images, refusal, write
from family_states import (
    State,
    batch_counters,
    deeplab_v2_head,
    deeplab_v2_logits,
    resnet101,
    to_caffe,
    upsample_corners,
)
from torch import Tensor, nn

from sfss_ray import Card, load_model, load_source_model, save_model, wrap_model
from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19, SYNTHIA_13, SYNTHIA_16
from sfss_ray.errors import CheckpointError, DataError
from sfss_ray.models.checkpoints import keep_outputs, recognise
from sfss_ray.streets.default import SOURCE_MODEL

SIZE = (39, 52)
VOC_21 = ["background", *[f"thing {i}" for i in range(20)]]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return random_images(SIZE)


@pytest.fixture(scope="module")
def body() -> State:
    return resnet101()


@pytest.fixture(scope="module")
def multi(body: State) -> State:
    """AdaptSegNet's DeeplabMulti: the auxiliary head on 1024 channels, the main one on 2048."""
    return body | deeplab_v2_head("layer5.", 19, 1024, seed=2) | deeplab_v2_head("layer6.", 19)


@pytest.mark.parametrize(
    "key", ["layer3.17.conv2.weight", "layer6.conv2d_list.2.bias", "bn1.running_var"]
)
def test_a_missing_tensor_of_backbone_or_classifier_is_refused(key, multi, tmp_path):
    state = dict(multi)
    del state[key]
    message = refusal(write(tmp_path / "x.pth", state))
    assert "1 tensors missing" in message
    assert "so it is incomplete: copy it again" in message
    assert key.removeprefix("layer6.") in message


def test_a_tensor_of_another_shape_is_refused(multi, tmp_path):
    state = multi | {"layer1.0.conv1.weight": torch.zeros(64, 32, 1, 1)}
    message = refusal(write(tmp_path / "x.pth", state))
    assert "1 of wrong shape" in message
    assert "body.layer1.0.conv1.weight is (64, 32, 1, 1), not (64, 64, 1, 1)" in message
    assert "so it is a variant that this package does not build" in message


def test_unexpected_tensors_are_reported_and_not_refused(multi, tmp_path):
    state = multi | {"layer7.weight": torch.zeros(2), "ema_decay": torch.zeros(1)}
    report = load_source_model(write(tmp_path / "x.pth", state)).load_report
    assert report.unexpected == ("body.layer7.weight",)
    assert "ema_decay" in report.unused
    assert "1 unexpected" in report.summary()


def test_batch_counters_are_loaded_but_not_required(body, tmp_path):
    """Files of frozen BatchNorm have no counters; those of trained BatchNorm do."""
    state = body | deeplab_v2_head("layer6.", 19)
    without = load_source_model(write(tmp_path / "a.pth", state)).load_report
    assert without.missing == without.unexpected == ()
    counters = batch_counters(state)
    counted = load_source_model(write(tmp_path / "b.pth", state | counters)).load_report
    assert counted.missing == counted.unexpected == ()
    assert len(counted.matched) == len(without.matched) + len(counters)


def test_unknown_families_are_refused_with_the_known_ones(tmp_path):
    message = refusal(write(tmp_path / "x.pth", {"encoder.a": torch.zeros(1)}))
    assert "of no known family (found: encoder.a)" in message
    assert "AdaptSegNet" in message
    assert "wrap_model" in message
    assert "no tensors, but epoch" in refusal(write(tmp_path / "y.pth", {"epoch": 3}))
    assert "a list" in refusal(write(tmp_path / "z.pth", [1]))


def test_the_path_is_named_when_a_family_refuses_a_file(body):
    with pytest.raises(CheckpointError, match=r"source model 'some\.pth': the file holds a ResNet"):
        recognise(body, "some.pth")


def test_outputs_without_known_names_need_classes(body, tmp_path):
    path = write(tmp_path / "x.pth", body | deeplab_v2_head("layer6.", 21))
    assert "has 21 outputs, and nothing says what they mean" in refusal(path)
    model = load_source_model(path, classes=VOC_21)
    assert model.classes.classes == tuple(VOC_21)
    assert model.load_report.classes_from == "the classes given"


def test_19_outputs_become_16_by_name(multi, images, tmp_path):
    path = write(tmp_path / "x.pth", multi)
    complete, reduced = load_source_model(path), load_source_model(path, classes="synthia-16")
    assert reduced.classes is SYNTHIA_16
    rows = [CITYSCAPES_19.classes.index(name) for name in SYNTHIA_16.classes]
    assert rows != list(range(16))
    with torch.no_grad():
        expected = complete(images)[:, rows]
        # Random weights give logits of hundreds, sums whose rounding grows with their size.
        tolerance = 1e-6 * expected.abs().max().item()
        assert torch.allclose(reduced(images), expected, atol=tolerance, rtol=1e-4)
    card = Card.from_dict(complete.card.to_dict() | {"classes": SYNTHIA_16.classes})
    assert reduced.card == card
    assert "has 19 outputs but 2 classes were given, and it has no class 'boat'" in refusal(
        path, classes=["road", "boat"]
    )
    assert "outputs but 21 classes" in refusal(path, classes=VOC_21)


@torch.no_grad()
def test_all_classes_in_another_order_reorder_the_outputs(images):
    model = load_source_model(SOURCE_MODEL)
    names = model.classes.classes[::-1]
    reordered = load_source_model(SOURCE_MODEL, classes=names)
    assert reordered.classes.classes == names
    torch.testing.assert_close(reordered(images), model(images).flip(1))


@torch.no_grad()
def test_as_many_new_classes_rename_the_outputs(images):
    model = load_source_model(SOURCE_MODEL)
    names = tuple(f"class {i}" for i in range(len(model.classes)))
    renamed = load_source_model(SOURCE_MODEL, classes=names)
    assert renamed.classes.classes == names
    assert torch.equal(renamed(images), model(images))


def test_outputs_of_a_users_own_module_cannot_be_selected():
    module = nn.Sequential(nn.Conv2d(3, 3, 1))
    model = wrap_model(module, classes=["a", "b", "c"], feature_layer="0")
    with pytest.raises(CheckpointError, match="has 3 outputs: give the names of all"):
        keep_outputs(model, ("a",))


def test_a_given_card_replaces_entries_of_the_familys(multi, images, tmp_path):
    path = write(tmp_path / "x.pth", multi)
    card = tmp_path / "card.json"
    card.write_text('{"channel_order": "rgb", "align_corners": false}')
    model = load_source_model(path, card=card)
    assert (model.card.channel_order, model.card.value_range) == ("rgb", 255)
    with torch.no_grad():
        mean = torch.tensor(model.card.mean).view(1, 3, 1, 1)
        logits = deeplab_v2_logits(multi, images * 255 - mean, "layer6.", caffe=True)
        expected = torch.nn.functional.interpolate(logits, SIZE, mode="bilinear")
        assert_close(model(images), expected)


def test_a_saved_foreign_model_keeps_its_preprocessing(multi, images, tmp_path):
    model = load_source_model(write(tmp_path / "x.pth", multi), card={"align_corners": False})
    path = save_model(tmp_path / "student.pt", model)
    for again in (load_model(path), load_source_model(path)):
        assert again.card == model.card
        with torch.no_grad():
            assert torch.equal(again(images), model(images))
    content = torch.load(path, weights_only=True)
    assert content["card"] == model.card.to_dict()


@torch.no_grad()
def test_safetensors_files_are_source_models(body, images, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    state = body | deeplab_v2_head("layer6.", 19)
    safetensors.save_file(state, tmp_path / "renamed.pth")
    logits = deeplab_v2_logits(state, to_caffe(images), "layer6.", caffe=True)
    model = load_source_model(tmp_path / "renamed.pth")
    assert_close(model(images), upsample_corners(logits, SIZE))


def test_a_model_file_has_no_ema_copy():
    assert "holds no EMA copy" in refusal(SOURCE_MODEL, weights="ema")
    assert load_source_model(SOURCE_MODEL, weights="student").name


@torch.no_grad()
def test_class_groups_sum_the_probabilities_of_their_outputs(images):
    model = load_source_model(SOURCE_MODEL)
    grouped = load_source_model(SOURCE_MODEL, class_groups="camvid-11")
    assert grouped.classes == CAMVID_11
    assert grouped.outputs == CITYSCAPES_19
    assert grouped.card == model.card
    probabilities = model(images).softmax(1)
    expected = [
        sum(probabilities[:, CITYSCAPES_19.classes.index(name)] for name in members)
        for members in grouped.classes.members
    ]
    torch.testing.assert_close(grouped(images).softmax(1), torch.stack(expected, 1))


@torch.no_grad()
def test_a_card_describes_the_outputs_and_groups_are_made_of_them(images, tmp_path):
    """Sixteen of nineteen outputs are kept, and then grouped."""
    options = {"classes": "synthia-16", "class_groups": "camvid-11"}
    both = load_source_model(SOURCE_MODEL, card={"align_corners": True}, **options)
    assert (both.outputs, both.classes) == (SYNTHIA_16, CAMVID_11)
    assert both.card.align_corners
    path = save_model(tmp_path / "grouped.pt", both)
    # A card given later does not undo the groups, and other groups replace them.
    again = load_source_model(path, card={"align_corners": False})
    assert (again.outputs, again.classes) == (SYNTHIA_16, CAMVID_11)
    assert not again.card.align_corners
    other = load_source_model(path, class_groups="synthia-13")
    assert (other.outputs, other.classes) == (SYNTHIA_16, SYNTHIA_13)
    renamed = {"road": "street"}
    names = tuple(renamed.get(name, name) for name in SYNTHIA_16.classes)
    with pytest.raises(DataError, match="lists 'road', which is not a class of the model"):
        load_source_model(path, classes=names)


def test_class_groups_that_do_not_fit_are_refused(tmp_path):
    for groups, message in [
        ({"all": ["road"]}, "leave out 'sidewalk' and 17 more of the model's classes"),
        ({"all": ["boat"]}, "lists 'boat', which is not a class of the model"),
        ({"a": ["road"], "b": ["road"]}, "list 'road' twice"),
    ]:
        assert message in refusal(SOURCE_MODEL, class_groups=groups)


def test_an_empty_list_of_classes_is_refused():
    with pytest.raises(CheckpointError, match="classes is empty: give the names of the outputs"):
        load_source_model(SOURCE_MODEL, classes=())
