"""Checkpoints of ESPNet and ESPNetv2: logits of the published networks, and the authors' own files."""

from __future__ import annotations

import espnet_reference
import pytest
import torch
from espnet_reference import Weights

from sfss_ray import evaluate_model
from sfss_ray.config import Config, override
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.errors import CheckpointError
from sfss_ray.models.checkpoints import load_source_model

OUTPUTS = (*CITYSCAPES_19.classes, "background")


def prepared_for_espnet(images: torch.Tensor) -> torch.Tensor:
    """BGR of 0 to 255, minus the mean, over the deviation, over 255."""
    mean = torch.tensor([72.3923111, 82.90893555, 73.15840149]).view(1, 3, 1, 1)
    std = torch.tensor([45.3192215, 46.15289307, 44.91483307]).view(1, 3, 1, 1)
    return (images[:, [2, 1, 0]] * 255 - mean) / std / 255


def prepared_for_v2(images: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    return (images - mean) / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


@pytest.mark.parametrize(("p", "q"), [(2, 8), (2, 3)])
def test_espnet_gives_the_published_logits(p, q, tmp_path):
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    weights = Weights(eps=1e-3)
    expected = espnet_reference.espnet(weights, prepared_for_espnet(images), 20, p, q)
    torch.save(weights.state, tmp_path / "x.pth")
    model = load_source_model(tmp_path / "x.pth")
    with torch.no_grad():
        assert torch.allclose(model(images), expected, atol=1e-4)
    assert model.network.options == {"p": p, "q": q, "width": 20}
    assert model.classes.classes == OUTPUTS
    assert model.load_report is not None
    assert len(model.load_report.matched) == len(weights.state)


def test_the_encoder_alone_is_refused_by_name(tmp_path):
    weights = Weights(eps=1e-3)
    espnet_reference.espnet(weights, torch.rand(2, 3, 64, 96), 20, 2, 3)
    prefix = "encoder."
    encoder = {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.state.items()
        if name.startswith(prefix)
    }
    torch.save(encoder, tmp_path / "espnet_c.pth")
    with pytest.raises(
        CheckpointError, match=r"espnet_c\.pth.*this is ESPNet-C, the encoder without"
    ):
        load_source_model(tmp_path / "espnet_c.pth")


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_espnet_v2_gives_the_published_logits(scale, tmp_path):
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    weights = Weights(eps=1e-5)
    expected = espnet_reference.espnet_v2(weights, prepared_for_v2(images), 20, scale)
    torch.save({"state_dict": weights.state}, tmp_path / "x.pth")
    model = load_source_model(tmp_path / "x.pth")
    with torch.no_grad():
        assert torch.allclose(model(images), expected, atol=1e-4)
    assert model.network.options == {"scale": scale, "pool_width": 10}
    assert model.card.align_corners


def test_outputs_are_dropped_by_name(tmp_path):
    """The last layer of ESPNet is a transposed convolution, whose outputs are its second axis."""
    images = torch.rand(1, 3, 32, 48)
    for name, network in (("espnet", espnet_reference.espnet), ("v2", espnet_reference.espnet_v2)):
        weights = Weights(eps=1e-3)
        arguments = (2, 3) if name == "espnet" else (0.5,)
        network(weights, images, 20, *arguments)
        torch.save(weights.state, tmp_path / f"{name}.pth")
        whole = load_source_model(tmp_path / f"{name}.pth")
        chosen = load_source_model(tmp_path / f"{name}.pth", classes=["sky", "road", "car"])
        with torch.no_grad():
            expected = whole(images)[:, [10, 0, 13]]
            assert torch.allclose(chosen(images), expected, atol=1e-5)


def test_other_numbers_of_outputs_need_names(tmp_path):
    weights = Weights(eps=1e-3)
    espnet_reference.espnet(weights, torch.rand(1, 3, 32, 32), 6, 2, 3)
    torch.save(weights.state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="has 6 outputs, and nothing says what they mean"):
        load_source_model(tmp_path / "x.pth")


def test_a_file_without_its_last_layer_is_refused_in_one_line(tmp_path):
    weights = Weights(eps=1e-5)
    espnet_reference.espnet_v2(weights, torch.rand(1, 3, 32, 32), 20, 1.0)
    state = {k: v for k, v in weights.state.items() if not k.startswith("bu_dec_l4.merge_layer.3")}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"classifier\.weight") as refused:
        load_source_model(tmp_path / "x.pth")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("file", "least"),
    [
        ("espnet_p_2_q_8.pth", 50),
        ("espnetv2_s_1.0_city_1024x512.pth", 50),
        ("espnetv2_s_2.0_city_1024x512.pth", 55),
    ],
)
def test_the_authors_files_segment_cityscapes(file, least, shared_data):
    """The authors' mIoU on Cityscapes' validation images is 61 to 66; here on four training images."""
    images = shared_data("cityscapes_sample")
    model = load_source_model(shared_data("models") / file)
    assert model.load_report is not None
    assert not model.load_report.missing
    score = evaluate_model(
        model,
        images / "leftImg8bit" / "train",
        images / "gtFine" / "train",
        config=override(Config(), {"evaluation.max_size": 1024}),
        progress=lambda _: None,
    )
    assert score.miou > least
