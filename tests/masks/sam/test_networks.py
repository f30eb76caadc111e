"""Building, recognising and loading SAM networks."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from sfss_ray.errors import CheckpointError
from sfss_ray.masks.sam.networks import (
    build_small_sam,
    load_sam,
    recognise_sam_type,
    shipped_small_sam,
)


@pytest.fixture(scope="module")
def small_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_small_sam().state_dict()


@pytest.fixture
def small_file(small_state: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "small.pt"
    torch.save({name: value.half() for name, value in small_state.items()}, path)
    return path


def encoder_of(width: int, patch: int, blocks: int) -> dict[str, torch.Tensor]:
    """Return the tensors by which a type is recognised, without the memory of a real SAM."""
    state = {f"image_encoder.blocks.{i}.norm1.weight": torch.empty(1) for i in range(blocks)}
    state["image_encoder.patch_embed.proj.weight"] = torch.empty(width, 3, patch, patch)
    state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = torch.empty(2, 128)
    state["mask_decoder.iou_token.weight"] = torch.empty(1, 256)
    return state


def predict(sam, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    middle = np.array([[image.shape[1] / 2, image.shape[0] / 2]])
    return predictor.predict(middle, np.array([1]), multimask_output=True, return_logits=True)


def assert_one_line(error: pytest.ExceptionInfo[CheckpointError], *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_the_small_sam_has_2_million_parameters():
    count = sum(parameter.numel() for parameter in build_small_sam().parameters())
    assert count == 2_000_328


def test_the_small_sam_predicts_three_masks_of_the_image_size():
    image = np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)
    masks, scores, low = predict(build_small_sam().eval(), image)
    assert masks.shape == (3, 90, 160)
    assert scores.shape == (3,)
    assert low.shape == (3, 128, 128)


@pytest.mark.parametrize(
    ("width", "patch", "blocks", "expected"),
    [
        (768, 16, 12, "vit_b"),
        (1024, 16, 24, "vit_l"),
        (1280, 16, 32, "vit_h"),
        (128, 8, 8, "small"),
    ],
)
def test_types_are_recognised_by_shape(width: int, patch: int, blocks: int, expected: str):
    assert recognise_sam_type(encoder_of(width, patch, blocks)) == expected


def test_a_sam_of_unknown_size_is_refused_with_its_size():
    with pytest.raises(CheckpointError) as error:
        recognise_sam_type(encoder_of(384, 16, 12))
    assert_one_line(error, "384", "vit_b")


def test_half_precision_round_trip(small_file: Path, small_state: dict[str, torch.Tensor]):
    sam = load_sam(small_file)
    assert not sam.training
    assert not any(parameter.requires_grad for parameter in sam.parameters())
    for name, value in sam.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, small_state[name].half().float(), rtol=0, atol=0)


def test_the_requested_type_is_accepted_if_the_file_contains_it(small_file: Path):
    assert load_sam(str(small_file), "small").image_encoder.img_size == 256


def test_another_type_than_requested_is_refused(small_file: Path):
    with pytest.raises(CheckpointError) as error:
        load_sam(small_file, "vit_b")
    assert_one_line(error, str(small_file), "small", "vit_b")


def test_an_unknown_type_is_refused(small_file: Path):
    with pytest.raises(CheckpointError) as error:
        load_sam(small_file, "vit_x")  # pyright: ignore[reportArgumentType]
    assert_one_line(error, "vit_x", "vit_b", "auto")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError) as error:
        load_sam(tmp_path / "none.pth")
    assert_one_line(error, "none.pth", "sam_vit_b_01ec64.pth")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02garbage", b"PK\x03\x04 cut short"])
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_sam(path)
    assert_one_line(error, str(path))


def test_a_truncated_checkpoint_is_refused(small_file: Path):
    small_file.write_bytes(small_file.read_bytes()[:100_000])
    with pytest.raises(CheckpointError) as error:
        load_sam(small_file)
    assert_one_line(error, str(small_file), "download it again")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path):
    executed = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return Path.touch, (executed,)

    path = tmp_path / "evil.pth"
    torch.save({"model": Evil()}, path)
    with pytest.raises(CheckpointError) as error:
        load_sam(path)
    assert_one_line(error, str(path), "more than weights")
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(CheckpointError):
        load_sam(path)
    assert not executed.exists()


def test_weights_of_another_network_are_refused_with_the_expected_keys(tmp_path: Path):
    path = tmp_path / "linear.pth"
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(CheckpointError) as error:
        load_sam(path)
    assert_one_line(error, str(path), "image_encoder.patch_embed.proj.weight", "bias")


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": 1}}, torch.zeros(2)])
def test_an_object_other_than_a_state_dict_is_refused(tmp_path: Path, content: object):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError) as error:
        load_sam(path)
    assert_one_line(error, str(path), "state dict")


def test_a_small_sam_with_a_missing_tensor_is_refused(
    tmp_path: Path, small_state: dict[str, torch.Tensor]
):
    path = tmp_path / "partial.pt"
    torch.save({k: v for k, v in small_state.items() if k != "image_encoder.pos_embed"}, path)
    with pytest.raises(CheckpointError) as error:
        load_sam(path)
    assert_one_line(error, "image_encoder.pos_embed")


def test_the_shipped_weights_load_and_are_small():
    path = shipped_small_sam()
    if not path.is_file():
        pytest.skip(f"{path} is missing: experiments/small_sam/train_small_sam.py trains it")
    assert path.stat().st_size < 5_000_000
    sam = load_sam(path, "small")
    image = np.full((128, 256, 3), 120, dtype=np.uint8)
    masks, scores, _ = predict(sam, image)
    assert np.isfinite(masks).all()
    assert np.isfinite(scores).all()
