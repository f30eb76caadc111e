"""Which promptable model runs a network that the caller has in memory."""

from __future__ import annotations

from typing import Any

from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import nn

from sfss_ray.masks.sam.promptable import PromptableModel
from sfss_ray.masks.sam.resize import PillowResize
from sfss_ray.masks.sam.sam_like_model import PARTS, SamLikeModel, takes_features
from sfss_ray.masks.sam.segment_anything_model import SegmentAnythingModel
from sfss_ray.masks.sam.stock_modules import is_stock
from sfss_ray.masks.sam.transformers_model import TransformersModel, check_weights


def promptable_model(model: Any) -> PromptableModel | None:
    """Return the promptable model of a network, or None for a Sam, which needs a stock predictor.

    Args:
        model: a Sam, a module with the parts of one, a model of transformers, or a promptable model,
            which is returned unchanged.

    Raises:
        ConfigError: the network is not one of the family, or its weights cannot be used.
    """
    if hasattr(model, "encode") and hasattr(model, "kind"):
        return model
    if not _has_parts(model):
        return TransformersModel(model)
    if isinstance(model, Sam) and not takes_features(model.mask_decoder):
        return None
    check_float32(model)
    if is_stock(model):
        return SegmentAnythingModel(SamPredictor(model), PillowResize())
    return SamLikeModel(model)


def check_float32(model: Any) -> None:
    """Raise ConfigError if a module with the parts of a Sam has weights that cannot be used."""
    # Another encoder may well have weights of another type, and is only called.
    encoder = [model.image_encoder] if type(model.image_encoder) is ImageEncoderViT else []
    check_weights(model, model.mask_decoder, model.prompt_encoder, *encoder)


def _has_parts(model: Any) -> bool:
    return isinstance(model, nn.Module) and all(hasattr(model, part) for part in PARTS)
