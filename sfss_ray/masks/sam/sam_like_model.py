"""Modules built like segment_anything's Sam with another encoder or decoder, such as SAM-HQ.

The module's own code runs: preprocess, image_encoder, prompt_encoder and mask_decoder. An encoder may
return intermediate features beside the embedding, for a decoder that takes them as `interm_embeddings`.
Everything after the decoder is the fast path.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn

from sfss_ray.errors import ConfigError
from sfss_ray.masks.sam.module_decoder import ModuleDecoder
from sfss_ray.masks.sam.promptable import EncodedCrop

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
_DECODER_INPUTS = (
    "image_embeddings", "image_pe", "sparse_prompt_embeddings", "dense_prompt_embeddings",
    "multimask_output",
)  # fmt: skip
_FEATURES = "interm_embeddings"


class SamLikeModel:
    """A module with the parts of a Sam, whose own decoder runs in batches of points.

    Args:
        model: has image_encoder, with img_size, prompt_encoder, mask_decoder and preprocess().
            image_format ("RGB") and mask_threshold (0) are optional.

    Raises:
        ConfigError: a part is missing, or the decoder takes other inputs.
    """

    kind = "sam_like"

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model.eval()  # its parts are typed as plain modules
        self._decoder_options = _decoder_options(self.model.mask_decoder)
        side = getattr(self.model.image_encoder, "img_size", None)
        if not isinstance(side, int) or not callable(getattr(model, "preprocess", None)):
            raise ConfigError(
                f"the {type(model).__name__} is used like segment_anything's Sam, but lacks"
                " image_encoder.img_size (an int) or the method preprocess; add them"
            )
        self.input_side = side
        self._transform = ResizeLongestSide(side)

    @property
    def device(self) -> torch.device:
        """Device of the model's weights."""
        return next(self.model.parameters()).device

    def has_pixels(self, height: int, width: int) -> bool:
        """Return whether a crop of this size has a pixel at the network's size."""
        return min(self._transform.get_preprocess_shape(height, width, self.input_side)) > 0

    def encode(self, crop: NDArray[Any], dtype: torch.dtype) -> EncodedCrop:
        """Run the module's own image encoder on a crop (h, w, 3), RGB."""
        (height, width), device = crop.shape[:2], self.device
        if getattr(self.model, "image_format", "RGB") != "RGB":
            crop = crop[..., ::-1]
        resized = self._transform.apply_image(np.ascontiguousarray(crop))
        pixels = torch.as_tensor(resized, device=device).permute(2, 0, 1)[None].contiguous()
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32):
            features = self.model.image_encoder(self.model.preprocess(pixels))
        embedding, more = (features[0], features[1]) if _is_several(features) else (features, None)
        input_size = self._transform.get_preprocess_shape(height, width, self.input_side)
        return EncodedCrop(
            decoder=ModuleDecoder(partial(self._call, embedding, more, dtype)),
            size=(height, width),
            upsampling_sizes=(self.input_side, input_size, (height, width)),
            point_scale=(input_size[1] / width, input_size[0] / height),
            input_side=self.input_side,
            mask_threshold=getattr(self.model, "mask_threshold", 0.0),
            device=device,
            key_bytes=dtype.itemsize * embedding[0].numel(),
            embedding=embedding[0],
        )

    def _call(
        self, embedding: Tensor, features: Any, dtype: torch.dtype, points: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, M, h, w) and predicted IoUs (B, M) of the module's own decoder."""
        prompts: Any = self.model.prompt_encoder
        options = dict(self._decoder_options)
        if _FEATURES in options:
            options[_FEATURES] = features
        labels = torch.ones((len(points), 1), dtype=torch.int, device=points.device)
        with torch.autocast(points.device.type, torch.bfloat16, enabled=dtype != torch.float32):
            sparse, dense = prompts(points=(points[:, None], labels), boxes=None, masks=None)
            logits, predicted_iou, *_ = self.model.mask_decoder(
                image_embeddings=embedding,
                image_pe=prompts.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
                **options,
            )
        return logits, predicted_iou


def takes_features(decoder: Any) -> bool:
    """Return whether a mask decoder takes the intermediate features of the image encoder."""
    return _FEATURES in inspect.signature(decoder.forward).parameters


def _decoder_options(decoder: Any) -> dict[str, Any]:
    """Return the inputs of a decoder that segment_anything's does not have.

    SAM-HQ's decoder adds its own mask to the best one of SAM, or with hq_token_only gives it alone. The
    sum is what its own generator uses.
    """
    parameters = inspect.signature(decoder.forward).parameters
    options = {
        name: False if name == "hq_token_only" else None
        for name in (_FEATURES, "hq_token_only")
        if name in parameters
    }
    try:
        inspect.signature(decoder.forward).bind(**dict.fromkeys((*_DECODER_INPUTS, *options)))
    except TypeError as error:
        raise ConfigError(
            f"the mask decoder ({type(decoder).__name__}) cannot be called with"
            f" {', '.join((*_DECODER_INPUTS, *options))} ({error}): give it a forward() with these"
        ) from error
    return options


def _is_several(features: Any) -> bool:
    return isinstance(features, list | tuple)
