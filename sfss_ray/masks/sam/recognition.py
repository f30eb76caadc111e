"""Which promptable model runs a network that the caller has in memory."""

from __future__ import annotations

from typing import Any

from segment_anything.modeling import ImageEncoderViT, Sam

from sfss_ray.masks.sam.promptable import PromptableModel
from sfss_ray.masks.sam.transformers_model import TransformersModel, check_weights


def promptable_model(model: Any) -> PromptableModel | None:
    """Return the promptable model of a network, or None for a Sam, which needs a stock predictor.

    Args:
        model: a Sam, a model of transformers, or a promptable model, which is returned unchanged.

    Raises:
        ConfigError: the network is not one of the family, or its weights cannot be used.
    """
    if isinstance(model, Sam):
        parts = model.mask_decoder, model.prompt_encoder
        # Another encoder may well have weights of another type, and is only called.
        encoder = [model.image_encoder] if type(model.image_encoder) is ImageEncoderViT else []
        check_weights(model, *parts, *encoder)
        return None
    if hasattr(model, "encode") and hasattr(model, "kind"):
        return model
    return TransformersModel(model)
