"""Promptable models from files, folders and names on the Hub."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from random_sam import drawn_image
from segment_anything.modeling import Sam

from sfss_ray.errors import CheckpointError, SfssError
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.loading import load_promptable, resolve_checkpoint, type_of_network
from sfss_ray.masks.sam.networks import load_sam, shipped_small_sam

transformers = pytest.importorskip("transformers")
from family_models import MODELS  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

SETTINGS = {
    "points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.2,
    "output_mode": "uncompressed_rle",
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """A model and the folder that its save_pretrained wrote."""
    model, folder = MODELS[request.param](), tmp_path_factory.mktemp("saved") / "anything"
    model.save_pretrained(folder)
    return request.param, model, folder


def refusal(checkpoint: Path | str, network_type: str = "auto") -> str:
    """Return the error of a checkpoint; it must be a single line."""
    with pytest.raises(SfssError) as error:
        load_promptable(checkpoint, network_type)
    assert "\n" not in str(error.value)
    return str(error.value)


def masks(model: Any) -> list[Any]:
    records = AutomaticMaskGenerator(model, **SETTINGS).generate(drawn_image())
    return [record["segmentation"] for record in records]


def test_a_folder_gives_the_masks_of_the_saved_model(saved):
    kind, model, folder = saved
    loaded = load_promptable(folder, kind)
    assert type_of_network(loaded) == kind
    assert masks(loaded) == masks(model)
    assert masks(folder) == masks(model)
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_a_file_is_read_with_the_config_beside_it(saved, tmp_path):
    kind, model, folder = saved
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    save_file({name: value.half() for name, value in state.items()}, tmp_path / "x.safetensors")
    loaded = load_promptable(tmp_path / "x.safetensors")
    assert type_of_network(loaded) == kind
    parameters = zip(loaded.model.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(a, b.half().float()) for a, b in parameters)


def test_the_image_processor_beside_the_weights_is_used(saved, tmp_path):
    from sfss_ray.masks.sam.transformers_model import TransformersModel

    _, model, folder = saved
    processor = TransformersModel(model).processor
    processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert list(load_promptable(tmp_path).processor.image_mean) == [0.1, 0.2, 0.3]
    assert list(load_promptable(folder).processor.image_mean) != [0.1, 0.2, 0.3]


def test_the_video_model_of_sam_2_gives_its_image_part(tmp_path):
    """Published weights of SAM 2 are those of the video model."""
    config = MODELS["sam2"]().config.to_dict()
    parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    video = transformers.Sam2VideoModel(
        transformers.Sam2VideoConfig(
            **{part: config[part] for part in parts}, image_size=128, mask_downsampler_embed_dim=32,
            memory_attention_hidden_size=32, memory_attention_num_layers=1,
            memory_attention_feed_forward_hidden_size=32, memory_attention_num_attention_heads=1,
            memory_encoder_hidden_size=32, memory_encoder_output_channels=16,
            memory_fuser_embed_dim=32,
        )
    )  # fmt: skip
    video.save_pretrained(tmp_path)
    loaded, tensors = load_promptable(tmp_path), video.state_dict()
    assert type_of_network(loaded) == "sam2"
    assert all(torch.equal(value, tensors[k]) for k, value in loaded.model.state_dict().items())


def test_loading_prints_nothing(saved, capfd):
    load_promptable(saved[2])
    assert capfd.readouterr() == ("", "")


def test_segment_anythings_weights_may_be_a_safetensors_file_of_any_name(tmp_path):
    sam = load_sam(shipped_small_sam())
    save_file({k: v.contiguous() for k, v in sam.state_dict().items()}, tmp_path / "sam2.bin")
    loaded = load_promptable(tmp_path / "sam2.bin")
    assert isinstance(loaded, Sam)
    assert type_of_network(loaded) == "small"
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, sam.state_dict()[name])
    torch.save({"model": sam.state_dict(), "epoch": 3}, tmp_path / "training.pth")
    assert isinstance(load_promptable(tmp_path / "training.pth"), Sam)


def test_another_family_than_requested_is_refused(saved):
    kind, _, folder = saved
    message = refusal(folder, "vit_b")
    assert f"contains a network of type {kind}, but sam_type is vit_b; set sam_type to" in message
    assert "contains a SAM of type small, but sam_type is sam2" in refusal(
        shipped_small_sam(), "sam2"
    )
    assert "sam_type is 'sam9'; allowed are auto, vit_b" in refusal(folder, "sam9")


def test_a_folder_without_config_is_refused(saved, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((saved[2] / "model.safetensors").read_bytes())
    assert "is a folder without config.json" in refusal(tmp_path)
    assert "source model" not in refusal(tmp_path)
    message = refusal(tmp_path / "model.safetensors")
    assert "weights of transformers without config.json beside them: give the folder" in message


def test_weights_in_several_files_need_every_file(saved, tmp_path):
    _, model, _ = saved
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) >= 2
    assert masks(load_promptable(tmp_path)) == masks(model)
    assert "is one of several shards: give its folder" in refusal(files[0])
    files[1].unlink()
    message = refusal(tmp_path)
    assert f"SAM checkpoint {str(tmp_path)!r} lacks 1 of its {len(files)} shards" in message
    assert files[1].name in message


def test_weights_of_another_network_than_the_config_says_are_refused(saved, tmp_path):
    kind, _, folder = saved
    other = next(name for name in MODELS if name != kind)
    MODELS[other]().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert "the weights are those of another network" in refusal(tmp_path)


def test_a_network_without_points_is_refused(saved, tmp_path):
    _, _, folder = saved
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "segformer"}))
    message = refusal(tmp_path)
    assert "describes a network of type 'segformer'; allowed are sam, sam2, sam2_video" in message


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["sam_mask_decoder.iou_token.weight"], "of Meta's sam2 package: give the same model from"),
        (["detector.backbone.x"], "of Meta's sam3 package"),
        (
            ["conv.weight"],
            "not contain the weights of a promptable network (its first tensors: conv",
        ),
    ],
)
def test_weights_of_other_programs_are_named(keys, expected, tmp_path):
    torch.save({"model": {key: torch.zeros(1) for key in keys}}, tmp_path / "a.pt")
    assert expected in refusal(tmp_path / "a.pt")


def test_a_damaged_file_is_named(saved, tmp_path):
    for file in saved[2].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x01" * 100)
    assert "model.safetensors' cannot be read" in refusal(tmp_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a name must not reach the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path / "hub"


def test_a_name_on_the_hub_is_looked_up_in_the_cache_alone(cache):
    name = "someone/sam2-tiny"
    message = refusal(name)
    assert f"SAM checkpoint {name!r} is no path" in message
    assert f"not in the local cache ({cache}): run `hf download {name}`" in message
    repository, commit = cache / "models--someone--sam2-tiny", "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    model = MODELS["sam2"]()
    model.save_pretrained(repository / "snapshots" / commit)
    assert resolve_checkpoint(name) == repository / "snapshots" / commit
    assert masks(name) == masks(model)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no SAM checkpoint at .*none\.pth"):
        load_promptable(tmp_path / "none.pth")
