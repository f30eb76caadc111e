"""Mask decoders of transformers under segment_anything's names, with shared weights.

The decoders of SamModel, Sam2Model and Sam3TrackerModel have the layers of segment_anything's decoder.
SAM 2 and SAM 3 put the token of an object score before the others, pass the IoU head through a sigmoid,
and add finer image features in the upscaling. SharedImageDecoder computes all three. It needs their
layers under the stock names. Nothing is copied: the modules are those of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn

_SHARED = ("iou_token", "mask_tokens", "num_mask_tokens", "output_hypernetworks_mlps",
           "iou_prediction_head")  # fmt: skip


@dataclass(frozen=True)
class PromptParts:
    """The parts of a prompt encoder that points use, as PromptEncoder names them.

    Attributes:
        pe_layer: encodes coordinates.
        input_image_size: (h, w) in pixels of the model input.
        point_embeddings: of a background point and a foreground point.
        not_a_point_embed: of the second token, which says that there is no box.
        no_mask_embed: added to the image embedding.
        get_dense_pe: returns the encoding of the image positions, (1, C, h, w).
    """

    pe_layer: Any
    input_image_size: tuple[int, int]
    point_embeddings: Any
    not_a_point_embed: Any
    no_mask_embed: Any
    get_dense_pe: Callable[[], Tensor]


@dataclass(frozen=True)
class FamilyParts:
    """What SharedImageDecoder uses of a model, under the names of Sam.

    Attributes:
        mask_decoder: layers under the names of MaskDecoder.
        prompt_encoder: for points.
        image_encoder: has img_size, the side of the model input in pixels.
    """

    mask_decoder: Any
    prompt_encoder: PromptParts
    image_encoder: Any


class _Parts:
    """A container of modules and values under given names."""

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)


def read_family_parts(model: Any, input_side: int) -> FamilyParts:
    """Return the parts of a model of transformers whose decoder is_stock_decoder() accepts.

    Args:
        model: a SamModel, Sam2Model or Sam3TrackerModel.
        input_side: of the model input in pixels.
    """
    return FamilyParts(
        _decoder(model.mask_decoder), _prompts(model, input_side), _Parts(img_size=input_side)
    )


def is_stock_decoder(model: Any) -> bool:
    """Return whether mask decoder and prompt encoder are transformers' own, without hooks or patches."""
    return all(
        _is_stock_module(module)
        for part in (model.mask_decoder, model.prompt_encoder)
        for module in part.modules()
    )


def _is_stock_module(module: nn.Module) -> bool:
    cls = type(module)
    is_known = cls.__module__.startswith(("transformers.", "torch.nn."))
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    # Those of transformers only record outputs, and stay after a call with output_attentions.
    has_hooks = any(not _module_of(hook).startswith("transformers.") for hook in hooks)
    return is_known and not has_hooks and "forward" not in vars(module)


def _module_of(function: Any) -> str:
    """Return the name of the module in which a hook was written."""
    return getattr(function, "__module__", None) or ""


def _decoder(decoder: Any) -> _Parts:
    shared = {name: getattr(decoder, name) for name in _SHARED}
    if hasattr(decoder, "obj_score_token"):
        shared["obj_score_token"] = decoder.obj_score_token
    upscaling = (
        decoder.upscale_conv1,
        decoder.upscale_layer_norm,
        decoder.activation,
        decoder.upscale_conv2,
        decoder.activation,
    )
    transformer = decoder.transformer
    layers = _Parts(
        layers=[_block(layer) for layer in transformer.layers],
        final_attn_token_to_image=_attention(transformer.final_attn_token_to_image),
        norm_final_attn=transformer.layer_norm_final_attn,
    )
    return _Parts(transformer=layers, output_upscaling=upscaling, **shared)


def _block(layer: Any) -> _Parts:
    norms = {f"norm{k}": getattr(layer, f"layer_norm{k}") for k in range(1, 5)}
    return _Parts(
        self_attn=_attention(layer.self_attn),
        cross_attn_token_to_image=_attention(layer.cross_attn_token_to_image),
        cross_attn_image_to_token=_attention(layer.cross_attn_image_to_token),
        mlp=layer.mlp,
        skip_first_layer_pe=layer.skip_first_layer_pe,
        **norms,
    )


def _attention(attention: Any) -> Attention:
    """Return segment_anything's attention with the projections of transformers'."""
    with torch.device("meta"):  # the weights that are replaced take no memory
        shared = Attention(
            attention.hidden_size,
            attention.num_attention_heads,
            attention.hidden_size // attention.internal_dim,
        )
    shared.q_proj, shared.k_proj = attention.q_proj, attention.k_proj
    shared.v_proj = attention.v_proj
    shared.out_proj = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
    return shared


def _prompts(model: Any, input_side: int) -> PromptParts:
    encoder = model.prompt_encoder

    def encode(points: Tensor, size: tuple[int, int]) -> Tensor:
        return encoder.shared_embedding(points[None], size)[0]

    points = encoder.point_embed
    if isinstance(points, nn.Embedding):  # SAM 2 and SAM 3 keep a row per kind of point
        points = [_Parts(weight=points.weight[k : k + 1]) for k in range(2)]
    return PromptParts(
        pe_layer=_Parts(forward_with_coords=encode),
        input_image_size=(input_side, input_side),
        point_embeddings=points,
        not_a_point_embed=encoder.not_a_point_embed,
        no_mask_embed=encoder.no_mask_embed,
        get_dense_pe=model.get_image_wide_positional_embeddings,
    )
