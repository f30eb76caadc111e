"""Tests of recognising SegFormer, DAFormer and HRDA checkpoints, against computed logits."""

from __future__ import annotations

import mit_states as mit
import pytest
import torch
from checkpoint_files import random_images, write
from family_states import to_mmseg
from mit_states import State, whole_network

pytest.importorskip("transformers", reason="pip install 'sfss-ray[transformers]'")

from sfss_ray import cli, load_source_model
from sfss_ray.errors import CheckpointError
from sfss_ray.models.families.mix_transformers import decoder_width, num_outputs
from sfss_ray.streets.scenes import write_streets

SIZE = (64, 96)


@pytest.fixture(scope="module")
def plain() -> State:
    return mit.plain_encoder()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return random_images(SIZE, count=2)


@torch.no_grad()
def assert_logits(model, grid_logits, images, tolerance=2e-5):
    """Check the logits, report and card of a model with mmsegmentation's preprocessing."""
    expected = mit.upsample(grid_logits, SIZE)
    largest = expected.abs().max().item()
    assert 0.1 < largest < 1e3
    assert expected.std(dim=(0, 2, 3)).min() > 1e-3 * largest  # logits that depend on the image
    assert (model(images) - expected).abs().max().item() < tolerance * largest
    assert model.load_report.missing == ()
    assert model.load_report.unexpected == ()
    assert not model.card.align_corners
    assert model.card.channel_order == "rgb"


@torch.no_grad()
def encode(plain: State, images: torch.Tensor, embed_eps: float = 1e-5) -> list[torch.Tensor]:
    return mit.encode(plain, to_mmseg(images), embed_eps, 1e-6)


def test_nvlabs_segformer(plain, images, tmp_path):
    """Its blocks add 1e-6 to the variance, those of transformers 1e-5."""
    head = mit.nvlabs_head()
    state = whole_network(mit.original_backbone(plain), head)
    model = load_source_model(write(tmp_path / "x.pth", {"meta": {}, "state_dict": state}))
    assert model.name == "segformer_b0"
    assert model.load_report.unused == ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias")
    assert_logits(model, mit.nvlabs_logits(head, encode(plain, images)), images)


def test_mmseg_segformer_with_classes_of_its_own(plain, images, tmp_path):
    head = mit.mmseg_head()
    classes = tuple(f"thing {i}" for i in range(mit.CLASSES))
    state = whole_network(mit.mmseg_backbone(plain), head)
    content = {"meta": {"CLASSES": classes, "PALETTE": [[0, 0, 0]]}, "state_dict": state}
    model = load_source_model(write(tmp_path / "x.pth", content))
    assert model.name == "segformer_mmseg_b0"
    assert model.classes.classes == classes
    assert model.load_report.classes_from == "the file"
    assert_logits(model, mit.mmseg_logits(head, encode(plain, images, 1e-6)), images)


def test_classes_of_newer_mmseg(plain, tmp_path):
    meta = {"dataset_meta": {"classes": [f"c{i}" for i in range(19)], "palette": None}}
    state = whole_network(mit.mmseg_backbone(plain), mit.mmseg_head())
    model = load_source_model(write(tmp_path / "x.pth", {"meta": meta, "state_dict": state}))
    assert model.classes.classes[18] == "c18"


@torch.no_grad()
def test_mmseg_segformer_with_align_corners(plain, images, tmp_path):
    head = mit.mmseg_head()
    head_config = {"type": "SegformerHead", "num_classes": 19, "align_corners": True}
    config = {"model": {"backbone": {"type": "MixVisionTransformer"}, "decode_head": head_config}}
    config["img_norm_cfg"] = {
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "to_rgb": True,
    }
    state = whole_network(mit.mmseg_backbone(plain), head)
    path = write(tmp_path / "x.pth", {"meta": {"cfg": config}, "state_dict": state})
    logits = mit.mmseg_logits(head, encode(plain, images, 1e-6), align_corners=True)
    expected = mit.upsample(logits, SIZE, align_corners=True)
    actual = load_source_model(path)(images)
    assert (actual - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.fixture(scope="module")
def daformer(plain) -> State:
    """A file of DAFormer and SePiCo: a student, copies of EMA and ImageNet weights, statistics."""
    student = whole_network(mit.original_backbone(plain), mit.daformer_head(), "model.")
    other_backbone = mit.original_backbone(mit.plain_encoder(seed=5))
    return (
        student
        | whole_network(other_backbone, mit.daformer_head(seed=6), "ema_model.")
        | {f"imnet_model.backbone.{k}": v for k, v in other_backbone.items()}
        | {"model.auxiliary_head.conv.weight": torch.zeros(1)}
        | {"feat_distributions.Amount": torch.ones(3)}
    )


@pytest.fixture(scope="module")
def copy_logits(images) -> torch.Tensor:
    """The logits of the EMA copy in that file."""
    stages = encode(mit.plain_encoder(seed=5), images)
    return mit.daformer_logits(mit.daformer_head(seed=6), stages)


def test_daformer_mic_and_sepico(plain, daformer, images, tmp_path):
    model = load_source_model(write(tmp_path / "x.pth", {"state_dict": daformer, "meta": {}}))
    assert model.name == "daformer_b0"
    logits = mit.daformer_logits(mit.daformer_head(), encode(plain, images))
    assert_logits(model, logits, images)
    assert {key.split(".")[0] for key in model.load_report.unused} == {
        "ema_model",
        "imnet_model",
        "auxiliary_head",
        "feat_distributions",
    }
    assert "an EMA copy" in model.load_report.notes[0]


def test_the_ema_copy_can_be_chosen(daformer, copy_logits, images, tmp_path):
    path = write(tmp_path / "x.pth", {"state_dict": daformer})
    assert_logits(load_source_model(path, weights="ema"), copy_logits, images)


def test_a_file_with_only_ema_weights(daformer, copy_logits, images, tmp_path):
    state = {k: v for k, v in daformer.items() if k.startswith("ema_model.")}
    model = load_source_model(write(tmp_path / "x.pth", state))
    assert_logits(model, copy_logits, images)
    assert "those of the EMA copy" in model.load_report.notes[0]
    with pytest.raises(CheckpointError, match=r"an EMA copy \(ema_model\.\) but no student"):
        load_source_model(tmp_path / "x.pth", weights="student")


def test_a_file_without_an_ema_copy(plain, tmp_path):
    state = whole_network(mit.mmseg_backbone(plain), mit.mmseg_head())
    with pytest.raises(CheckpointError, match=r"holds no EMA copy \(ema_model\."):
        load_source_model(write(tmp_path / "x.pth", state), weights="ema")


@pytest.mark.parametrize(
    ("choice", "note"), [("student", "the student was loaded"), ("ema", "those of the EMA copy")]
)
def test_the_command_line_chooses_the_copy(choice, note, daformer, tmp_path, capsys):
    path = write(tmp_path / "x.pth", {"state_dict": daformer})
    write_streets(tmp_path, "camera", 0, 1, (64, 128), with_labels=False)
    arguments = ["verify", "--source-model", str(path), "--images", str(tmp_path / "images")]
    assert cli.main([*arguments, "--source-weights", choice]) == 0
    assert note in capsys.readouterr().out


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("backbone.block3.1.attn.kv.weight", r"2 tensors missing, first .*k_proj"),
        ("backbone.patch_embed1.proj.weight", "first patch embedding is missing"),
        ("decode_head.conv_seg", r"its classifier decode_head\.conv_seg is missing"),
        ("decode_head.fuse_layer.bottleneck.bn.running_var", "1 tensors missing"),
        ("decode_head.", "decode_head is missing"),
        ("backbone.block4.1.", r"depths \(2, 2, 2, 1\)"),
    ],
)
def test_files_that_lack_a_tensor_are_refused(removed, message, plain, tmp_path):
    state = whole_network(mit.original_backbone(plain), mit.daformer_head())
    state = {key: tensor for key, tensor in state.items() if not key.startswith(removed)}
    with pytest.raises(CheckpointError, match=message):
        load_source_model(write(tmp_path / "x.pth", state))


def test_a_backbone_alone_is_refused(plain, tmp_path):
    with pytest.raises(CheckpointError, match="Mix Transformer alone"):
        load_source_model(write(tmp_path / "x.pth", mit.original_backbone(plain)))


def test_unknown_decode_heads_are_refused_with_the_supported_ones(plain, tmp_path):
    state = {
        "backbone.layer1.0.conv1.weight": torch.zeros(1),
        "decode_head.psp_modules.0.1.conv.weight": torch.zeros(1),
    }
    message = r"psp_modules.*supported decode heads are SegFormer's"
    with pytest.raises(CheckpointError, match=message):
        load_source_model(write(tmp_path / "x.pth", state))
    head = {"lateral_convs.0.conv.weight": torch.zeros(1)}
    state = whole_network(mit.mmseg_backbone(plain), head)
    with pytest.raises(CheckpointError, match="lateral_convs"):
        load_source_model(write(tmp_path / "x.pth", state))


def test_hrda_keeps_outputs_of_chosen_classes_in_both_classifiers(plain, tmp_path):
    path = write(tmp_path / "x.pth", whole_network(mit.original_backbone(plain), mit.hrda_head()))
    images = random_images((64, 64), seed=4)
    with torch.no_grad():
        reduced = load_source_model(path, classes=("car", "road"))(images)
        complete = load_source_model(path)(images)
    torch.testing.assert_close(reduced, complete[:, [13, 0]])


def test_hrda_with_another_head_or_with_one_attention_for_all_classes_is_refused(plain, tmp_path):
    head, backbone = mit.hrda_head(), mit.original_backbone(plain)
    shared = {k: v[:1] if k.startswith("scale_attention.conv_seg") else v for k, v in head.items()}
    with pytest.raises(CheckpointError, match=r"wrong shape, first classifier\.attention"):
        load_source_model(write(tmp_path / "x.pth", whole_network(backbone, shared)))
    unknown = {k: v for k, v in head.items() if "embed_layers" not in k}
    with pytest.raises(CheckpointError, match="HRDA is supported with DAFormer's head only"):
        load_source_model(write(tmp_path / "x.pth", whole_network(backbone, unknown)))


def test_the_width_of_a_decoder_is_an_option_where_it_is_unusual():
    assert decoder_width(torch.zeros(256, 1024, 1, 1), "b0") == {}
    assert decoder_width(None, "b0") == {}
    assert decoder_width(torch.zeros(96, 384, 1, 1), "b0") == {"decoder_width": 96}
    assert decoder_width(torch.zeros(256, 1024, 1, 1), "b5") == {"decoder_width": 256}


def test_the_number_of_outputs_is_that_of_the_classifier():
    assert num_outputs({"classifier.seg.bias": torch.zeros(5)}, "head.conv_seg") == 5
    with pytest.raises(CheckpointError, match=r"its classifier head\.conv_seg is missing"):
        num_outputs({"body.x": torch.zeros(5)}, "head.conv_seg")
