"""SegFormer and DAFormer checkpoints from their key patterns, loaded, compared number by number."""

from __future__ import annotations

import sys

import mit_states as mit
import pytest
import torch
from mit_states import State

pytest.importorskip("transformers", reason="pip install 'sfss-ray[transformers]'")

from sfss_ray import cli, load_source_model
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.errors import CheckpointError, ConfigError
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.streets.scenes import write_streets

SIZE = (64, 96)
NAMES_OF_SIZES = ("b0", "b1", "b2", "b3", "b4", "b5")


@pytest.fixture(scope="module")
def plain() -> State:
    return mit.plain_encoder()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(7))


def named(backbone: State, head: State, prefix: str = "") -> State:
    both = {f"{prefix}backbone.{k}": v for k, v in backbone.items()}
    return both | {f"{prefix}decode_head.{k}": v for k, v in head.items()}


def imagenet_255(images: torch.Tensor) -> torch.Tensor:
    """mmsegmentation's preprocessing, channel by channel: RGB of 0 to 255."""
    red, green, blue = (255 * images).unbind(1)
    planes = ((red - 123.675) / 58.395, (green - 116.28) / 57.12, (blue - 103.53) / 57.375)
    return torch.stack(planes, 1)


def saved(path, content):
    torch.save(content, path)
    return path


@torch.no_grad()
def assert_logits(model, plain, head, logits_of, images, embed_eps, block_eps, tolerance=2e-5):
    stages = mit.encode(plain, imagenet_255(images), embed_eps, block_eps)
    expected = mit.enlarged(logits_of(head, stages), SIZE)
    scale = expected.abs().max().item()
    assert 0.1 < scale < 1e3
    assert expected.std(dim=(0, 2, 3)).min() > 1e-3 * scale  # logits that depend on the image
    assert (model(images) - expected).abs().max().item() < tolerance * scale
    assert model.load_report.missing == ()
    assert model.load_report.unexpected == ()
    assert not model.card.align_corners
    assert model.card.channel_order == "rgb"


def test_hugging_face_names_of_version_4(plain, images, tmp_path):
    from safetensors.torch import save_file

    head = mit.nvlabs_head()
    save_file(mit.transformers_4(plain, head), tmp_path / "model.safetensors")
    model = load_source_model(tmp_path / "model.safetensors")
    assert model.name == "segformer_b0"
    assert model.classes is CITYSCAPES_19
    assert_logits(model, plain, head, mit.nvlabs_logits, images, 1e-5, 1e-5)


def test_hugging_face_names_of_version_5_against_transformers_itself(images, tmp_path):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    theirs = SegformerForSemanticSegmentation(SegformerConfig(num_labels=19)).eval()
    theirs.decode_head.batch_norm.running_mean.uniform_(-0.1, 0.1)
    ours = load_source_model(saved(tmp_path / "pytorch_model.bin", theirs.state_dict()))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        expected = mit.enlarged(theirs((images - mean) / std).logits, SIZE)
        torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-6)


def test_a_folder_of_transformers_written_by_save_pretrained(tmp_path):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    theirs = SegformerForSemanticSegmentation(SegformerConfig(num_labels=19))
    theirs.save_pretrained(tmp_path)
    ours = load_source_model(tmp_path / "model.safetensors").network
    assert torch.equal(ours.classifier.weight, theirs.decode_head.classifier.weight)
    first, second = (sum(p.detach().double().sum() for p in m.parameters()) for m in (ours, theirs))
    assert float(first) == pytest.approx(float(second), abs=1e-9)


def test_nvlabs_segformer(plain, images, tmp_path):
    """Its blocks add 1e-6 to the variance, transformers' 1e-5."""
    head = mit.nvlabs_head()
    content = {"meta": {}, "state_dict": named(mit.original_backbone(plain), head)}
    model = load_source_model(saved(tmp_path / "x.pth", content))
    assert model.name == "segformer_b0"
    assert model.load_report.unused == ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias")
    assert_logits(model, plain, head, mit.nvlabs_logits, images, 1e-5, 1e-6)


def test_mmseg_segformer_with_classes_of_its_own(plain, images, tmp_path):
    head = mit.mmseg_head()
    classes = [f"thing {i}" for i in range(mit.CLASSES)]
    state = named(mit.mmseg_backbone(plain), head)
    content = {"meta": {"CLASSES": tuple(classes), "PALETTE": [[0, 0, 0]]}, "state_dict": state}
    model = load_source_model(saved(tmp_path / "x.pth", content))
    assert model.name == "segformer_mmseg_b0"
    assert model.classes.classes == tuple(classes)
    assert model.load_report.classes_from == "the file"
    assert_logits(model, plain, head, mit.mmseg_logits, images, 1e-6, 1e-6)


def test_classes_of_newer_mmseg(plain, tmp_path):
    meta = {"dataset_meta": {"classes": [f"c{i}" for i in range(19)], "palette": None}}
    state = named(mit.mmseg_backbone(plain), mit.mmseg_head())
    model = load_source_model(saved(tmp_path / "x.pth", {"meta": meta, "state_dict": state}))
    assert model.classes.classes[18] == "c18"


@pytest.fixture(scope="module")
def daformer(plain) -> State:
    """With what DAFormer and SePiCo keep beside the student: EMA and ImageNet copies, statistics."""
    student = named(mit.original_backbone(plain), mit.daformer_head(), "model.")
    other = mit.original_backbone(mit.plain_encoder(seed=5))
    return (
        student
        | named(other, mit.daformer_head(seed=6), "ema_model.")
        | {f"imnet_model.backbone.{k}": v for k, v in other.items()}
        | {"model.auxiliary_head.conv.weight": torch.zeros(1)}
        | {"feat_distributions.Amount": torch.ones(3)}
    )


def test_daformer_mic_and_sepico(plain, daformer, images, tmp_path):
    model = load_source_model(saved(tmp_path / "x.pth", {"state_dict": daformer, "meta": {}}))
    assert model.name == "daformer_b0"
    assert_logits(model, plain, mit.daformer_head(), mit.daformer_logits, images, 1e-5, 1e-6)
    unused = model.load_report.unused
    assert {key.split(".")[0] for key in unused} == {
        "ema_model",
        "imnet_model",
        "auxiliary_head",
        "feat_distributions",
    }
    assert "an EMA copy" in model.load_report.notes[0]


def test_the_ema_copy_can_be_chosen(daformer, images, tmp_path):
    path = saved(tmp_path / "x.pth", {"state_dict": daformer})
    model = load_source_model(path, weights="ema")
    plain = mit.plain_encoder(seed=5)
    assert_logits(model, plain, mit.daformer_head(seed=6), mit.daformer_logits, images, 1e-5, 1e-6)


def test_a_file_of_ema_weights_alone(daformer, images, tmp_path):
    state = {k: v for k, v in daformer.items() if k.startswith("ema_model.")}
    model = load_source_model(saved(tmp_path / "x.pth", state))
    plain = mit.plain_encoder(seed=5)
    assert_logits(model, plain, mit.daformer_head(seed=6), mit.daformer_logits, images, 1e-5, 1e-6)
    assert "those of the EMA copy" in model.load_report.notes[0]


def test_a_file_without_an_ema_copy(plain, tmp_path):
    path = saved(tmp_path / "x.pth", named(mit.mmseg_backbone(plain), mit.mmseg_head()))
    with pytest.raises(CheckpointError, match=r"holds no EMA copy \(ema_model\."):
        load_source_model(path, weights="ema")


def test_the_student_of_a_file_of_ema_weights_alone_is_refused(daformer, tmp_path):
    state = {k: v for k, v in daformer.items() if k.startswith("ema_model.")}
    with pytest.raises(CheckpointError, match=r"holds an EMA copy \(ema_model\.\) alone"):
        load_source_model(saved(tmp_path / "x.pth", state), weights="student")


def test_a_model_file_has_no_copy_to_choose():
    with pytest.raises(CheckpointError, match="holds no EMA copy"):
        load_source_model(SOURCE_MODEL, weights="ema")
    assert load_source_model(SOURCE_MODEL, weights="student").name


@pytest.mark.parametrize(
    ("choice", "note"), [("student", "the student was loaded"), ("ema", "those of the EMA copy")]
)
def test_the_command_line_chooses_the_copy(choice, note, daformer, tmp_path, capsys):
    path = saved(tmp_path / "x.pth", {"state_dict": daformer})
    write_streets(tmp_path, "camera", 0, 1, (64, 128), with_labels=False)
    words = ["verify", "--source-model", str(path), "--images", str(tmp_path / "images")]
    assert cli.main([*words, "--source-weights", choice]) == 0
    assert note in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("backbone.block3.1.attn.kv.weight", r"2 tensors missing, first .*k_proj"),
        ("backbone.patch_embed1.proj.weight", "first patch embedding is missing"),
        ("decode_head.conv_seg", r"its classifier decode_head\.conv_seg is missing"),
        ("decode_head.fuse_layer.bottleneck.bn.running_var", "1 tensors missing"),
        ("decode_head.", "decode_head is missing"),
        ("backbone.block4.1.", r"depths \(2, 2, 2, 1\)"),
    ],
)
def test_files_that_lack_a_tensor_are_refused(lost, said, plain, tmp_path):
    state = named(mit.original_backbone(plain), mit.daformer_head())
    state = {key: value for key, value in state.items() if not key.startswith(lost)}
    with pytest.raises(CheckpointError, match=said):
        load_source_model(saved(tmp_path / "x.pth", state))


def test_a_hugging_face_file_that_lacks_its_classifier_or_its_head(plain, tmp_path):
    whole = mit.transformers_4(plain, mit.nvlabs_head())
    state = {k: v for k, v in whole.items() if "classifier" not in k}
    with pytest.raises(CheckpointError, match=r"classifier decode_head\.classifier is missing"):
        load_source_model(saved(tmp_path / "x.pth", state))
    state = {k: v for k, v in whole.items() if k.startswith("segformer.")}
    with pytest.raises(CheckpointError, match="encoder alone"):
        load_source_model(saved(tmp_path / "x.pth", state))


def test_a_backbone_alone(plain, tmp_path):
    with pytest.raises(CheckpointError, match="Mix Transformer alone"):
        load_source_model(saved(tmp_path / "x.pth", mit.original_backbone(plain)))


def test_unknown_decode_heads_are_named_beside_the_known(plain, tmp_path):
    resnet = {"backbone.layer1.0.conv1.weight": torch.zeros(1)}
    state = resnet | {"decode_head.psp_modules.0.1.conv.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"psp_modules.*known decode heads are SegFormer's"):
        load_source_model(saved(tmp_path / "x.pth", state))
    state = named(mit.mmseg_backbone(plain), {"lateral_convs.0.conv.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="lateral_convs"):
        load_source_model(saved(tmp_path / "x.pth", state))


@pytest.mark.parametrize("size", [(64, 96), (64, 560)])
def test_hrda_fuses_context_and_crops_of_detail(size, plain, tmp_path):
    head = mit.hrda_head()
    content = {"state_dict": named(mit.original_backbone(plain), head, "model.")}
    model = load_source_model(saved(tmp_path / "x.pth", content))
    assert model.name == "hrda_b0"
    assert model.load_report.missing == model.load_report.unexpected == ()
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = mit.enlarged(mit.hrda_logits(head, plain, imagenet_255(images)), size)
        found = model(images)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


def test_hrda_takes_images_of_any_size():
    network = build_network("hrda_b0", 3).eval()
    with torch.no_grad():
        for size in ((70, 61), (66, 525)):
            logits = network.logits(torch.rand(1, 3, *size))
            assert logits.shape == (1, 3, *size)
            assert logits.isfinite().all()


def test_hrda_refuses_images_too_small():
    network = build_network("hrda_b0", 3).eval()
    assert network.logits(torch.rand(1, 3, 58, 58)).shape == (1, 3, 58, 58)
    with pytest.raises(ConfigError, match="57x64, too small"):
        network.logits(torch.rand(1, 3, 57, 64))


def test_hrda_keeps_outputs_of_chosen_classes_in_both_classifiers(plain, tmp_path):
    state = named(mit.original_backbone(plain), mit.hrda_head())
    path = saved(tmp_path / "x.pth", state)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        some = load_source_model(path, classes=("car", "road"))(images)
        every = load_source_model(path)(images)
    torch.testing.assert_close(some, every[:, [13, 0]])


def test_hrda_with_another_head_or_without_attention_for_each_class(plain, tmp_path):
    head = mit.hrda_head()
    one = {k: v[:1] if k.startswith("scale_attention.conv_seg") else v for k, v in head.items()}
    state = named(mit.original_backbone(plain), one)
    with pytest.raises(CheckpointError, match=r"wrong shape, first classifier\.attention"):
        load_source_model(saved(tmp_path / "x.pth", state))
    other = {k: v for k, v in head.items() if "embed_layers" not in k}
    with pytest.raises(CheckpointError, match="HRDA is known with DAFormer's head alone"):
        load_source_model(saved(tmp_path / "x.pth", named(mit.original_backbone(plain), other)))


PARAMETERS = {"b0": 3.7, "b1": 13.7, "b2": 27.4, "b3": 47.2, "b4": 64.0, "b5": 84.6}


@pytest.mark.parametrize("size", NAMES_OF_SIZES)
def test_sizes_have_the_published_number_of_parameters(size):
    with torch.device("meta"):
        network = build_network(f"segformer_{size}", 19)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(
        PARAMETERS[size], abs=0.06
    )


@pytest.mark.parametrize("name", ["segformer_b0", "segformer_mmseg_b0", "daformer_b0"])
def test_networks_give_features_and_logits_at_a_quarter(name):
    network = build_network(name, 5).eval()
    with torch.no_grad():
        features, logits = network(torch.rand(1, 3, 64, 96))
    assert features.shape == (1, network.feature_width, 16, 24)
    assert logits.shape == (1, 5, 16, 24)
    torch.testing.assert_close(network.classifier(features), logits)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'sfss-ray\[transformers\]'"):
        build_network("segformer_b2", 19)
