"""Segment Anything networks: the three published sizes, and a small one that runs on a laptop.

All of them are `segment_anything.modeling.Sam`, so tools written for SAM also work on the small one.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from segment_anything import build_sam_vit_b, build_sam_vit_h, build_sam_vit_l
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn

from sfss_ray.errors import CheckpointError
from sfss_ray.models.reading import read_checkpoint, starts_as_safetensors

SamType = Literal["vit_b", "vit_l", "vit_h", "small"]

SMALL_IMAGE_SIZE = 256
SMALL_PATCH_SIZE = 8
SMALL_EMBED_DIM = 64

_PATCH_KEY = "image_encoder.patch_embed.proj.weight"
_SAM_KEYS = (
    _PATCH_KEY,
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    "mask_decoder.iou_token.weight",
)
_TYPE_BY_ENCODER_SHAPE: dict[tuple[int, int, int], SamType] = {
    (768, 16, 12): "vit_b",
    (1024, 16, 24): "vit_l",
    (1280, 16, 32): "vit_h",
    (128, SMALL_PATCH_SIZE, 8): "small",
}
_HOW_TO_GET_WEIGHTS = (
    "give a SAM checkpoint (sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth, sam_vit_h_4b8939.pth) "
    "or the small one shipped with this package"
)


def build_small_sam() -> Sam:
    """Build a SAM of 2.0 million parameters with random weights, in training mode.

    Images: longest side 256 px. Image embedding: (64, 32, 32). Low-resolution masks: 128 x 128.
    """
    tokens_per_side = SMALL_IMAGE_SIZE // SMALL_PATCH_SIZE
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=SMALL_IMAGE_SIZE,
            patch_size=SMALL_PATCH_SIZE,
            embed_dim=128,
            depth=8,
            num_heads=4,
            mlp_ratio=4,
            out_chans=SMALL_EMBED_DIM,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType]
            use_rel_pos=True,
            window_size=8,
            global_attn_indexes=(1, 3, 5, 7),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=SMALL_EMBED_DIM,
            image_embedding_size=(tokens_per_side, tokens_per_side),
            input_image_size=(SMALL_IMAGE_SIZE, SMALL_IMAGE_SIZE),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=SMALL_EMBED_DIM, num_heads=4, mlp_dim=256
            ),
            transformer_dim=SMALL_EMBED_DIM,
            iou_head_depth=3,
            iou_head_hidden_dim=64,
        ),
    )


_BUILDERS: dict[SamType, Callable[[], Sam]] = {
    "vit_b": build_sam_vit_b,
    "vit_l": build_sam_vit_l,
    "vit_h": build_sam_vit_h,
    "small": build_small_sam,
}


def recognise_sam_type(state_dict: Mapping[str, torch.Tensor]) -> SamType:
    """Return the SAM type of these weights, recognised by tensor names and shapes.

    Raises:
        CheckpointError: the weights belong to another network, or to a SAM of unknown size.
    """
    missing = [key for key in _SAM_KEYS if key not in state_dict]
    if missing:
        raise CheckpointError(
            f"these are not the weights of a SAM: expected the keys {', '.join(_SAM_KEYS)}, "
            f"found {_first_names(state_dict)}; {_HOW_TO_GET_WEIGHTS}"
        )
    patch_shape = tuple(state_dict[_PATCH_KEY].shape)
    blocks = _count_encoder_blocks(state_dict)
    for (width, patch, depth), sam_type in _TYPE_BY_ENCODER_SHAPE.items():
        if patch_shape == (width, 3, patch, patch) and blocks == depth:
            return sam_type
    raise CheckpointError(
        f"a SAM of unknown size ({_PATCH_KEY} is {patch_shape}, {blocks} blocks): "
        f"the known types are {', '.join(get_args(SamType))}; {_HOW_TO_GET_WEIGHTS}"
    )


def load_sam(
    checkpoint: Path | str,
    sam_type: Literal["auto", "vit_b", "vit_l", "vit_h", "small"] = "auto",
    device: torch.device | str = "cpu",
) -> Sam:
    """Load a SAM from a file: float32, evaluation mode, no gradients.

    Args:
        checkpoint: a plain state dict saved by torch.save, of any floating type.
        sam_type: the type that the file must contain; "auto" accepts every type.
        device: of the network.

    Raises:
        CheckpointError: the file does not exist, is not a file of weights, or contains the weights of
            another network or of another type than `sam_type`.
    """
    allowed = ("auto", *get_args(SamType))
    if sam_type not in allowed:
        raise CheckpointError(f"sam_type is {sam_type!r}; allowed are {', '.join(allowed)}")
    path = Path(checkpoint)
    return load_state(read_state_dict(path), path, sam_type, device)


def load_state(
    state_dict: Mapping[str, torch.Tensor], path: Path, sam_type: str, device: torch.device | str
) -> Sam:
    """Return the SAM of these weights: float32, evaluation mode, no gradients.

    Args:
        state_dict: tensors of any floating type.
        path: from which they were read.
        sam_type: the type that they must have; "auto" accepts every type.
        device: of the network.

    Raises:
        CheckpointError: they are the weights of another network or of another type.
    """
    try:
        actual_type = recognise_sam_type(state_dict)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if sam_type not in ("auto", actual_type):
        raise CheckpointError(
            f"{path} contains a SAM of type {actual_type}, but sam_type is {sam_type}; "
            f"set sam_type to {actual_type} or auto, or give the file of a {sam_type}"
        )
    sam = _BUILDERS[actual_type]()
    _load_weights(sam, state_dict, path, actual_type)
    return sam.float().eval().requires_grad_(False).to(device)


def is_sam_state(state_dict: Mapping[str, Any]) -> bool:
    """Return whether these tensors have the names of segment_anything's Sam."""
    return any(key in state_dict for key in _SAM_KEYS[:2])  # transformers has the third one too


def shipped_small_sam() -> Path:
    """Return the path of the small SAM's weights in this package (float16, 4 MB)."""
    return Path(__file__).resolve().parents[2] / "streets" / "weights" / "small_sam.pt"


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by name; nothing in the file is executed.

    Args:
        path: of a file written by torch.save or as safetensors.

    Raises:
        CheckpointError: the file is missing or damaged, or contains more than weights.
    """
    if not path.is_file():
        raise CheckpointError(f"no SAM checkpoint at {path}: {_HOW_TO_GET_WEIGHTS}")
    try:
        with path.open("rb") as file:
            if starts_as_safetensors(file.read(9), path):
                content = read_checkpoint(path)
                return content.get("state_dict", content)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} contains more than weights: "
            f"save it again as torch.save(model.state_dict(), path), or {_HOW_TO_GET_WEIGHTS}"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch checkpoint ({_first_line(error)}); the file may "
            f"be truncated: download it again, or {_HOW_TO_GET_WEIGHTS}"
        ) from None
    for key in ("model", "state_dict"):  # training programs save more beside the weights
        if isinstance(content, dict) and _is_state_dict(content.get(key)):
            content = content[key]
    if not _is_state_dict(content):
        raise CheckpointError(
            f"{path} contains a {type(content).__name__}, not a state dict (names to tensors) of a "
            f"SAM; {_HOW_TO_GET_WEIGHTS}"
        )
    return content


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in content.items()
    )


def _load_weights(
    sam: Sam, state_dict: Mapping[str, torch.Tensor], path: Path, sam_type: SamType
) -> None:
    try:
        sam.load_state_dict(state_dict)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} looks like a SAM of type {sam_type}, but its tensors do not fit: "
            f"{_one_line(error)}; {_HOW_TO_GET_WEIGHTS}"
        ) from None


def _count_encoder_blocks(state_dict: Mapping[str, torch.Tensor]) -> int:
    prefix = "image_encoder.blocks."
    return len({name.split(".")[2] for name in state_dict if name.startswith(prefix)})


def _first_names(state_dict: Mapping[str, torch.Tensor], limit: int = 3) -> str:
    names = list(state_dict)
    listing = ", ".join(names[:limit]) or "no keys"
    return f"{listing} and {len(names) - limit} more" if len(names) > limit else listing


def _first_line(error: Exception, limit: int = 120) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__


def _one_line(error: Exception, limit: int = 300) -> str:
    return " ".join(str(error).split())[:limit]
