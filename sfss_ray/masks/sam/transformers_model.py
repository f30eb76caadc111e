"""SAM, SAM 2 and SAM 3 of transformers as promptable models.

The image encoder and the preprocessing are transformers' own. The decoder is image_decoder(), which
sums in another order; masks in which rounding decides a pixel are decoded again by the model itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from sfss_ray.errors import ConfigError
from sfss_ray.masks.sam.decoder import FineFeatures
from sfss_ray.masks.sam.factored_decoder import image_decoder
from sfss_ray.masks.sam.family_parts import is_stock_decoder, read_family_parts
from sfss_ray.masks.sam.module_decoder import ModuleDecoder
from sfss_ray.masks.sam.promptable import EncodedCrop, PointDecoder
from sfss_ray.masks.sam.reference_decoder import FamilyReferenceDecoder

KINDS = {"SamModel": "hf_sam", "Sam2Model": "sam2", "Sam3TrackerModel": "sam3"}
"""Classes of transformers, and the kinds of network that recipes and reports name."""
_PROCESSORS = {
    "hf_sam": "SamImageProcessor",
    "sam2": "Sam2ImageProcessor",
    "sam3": "Sam3ImageProcessor",
}
_MASK_THRESHOLD = 0.0


class TransformersModel:
    """A SamModel, Sam2Model or Sam3TrackerModel with its image processor.

    Args:
        model: in float32, on the device where it runs.
        processor: the image processor that belongs to the weights; None uses the class's defaults with
            the model's input size.

    Raises:
        ConfigError: the model is of another class, not in float32, or without weights.
    """

    def __init__(self, model: Any, processor: Any = None) -> None:
        self.kind = kind_of_module(model)
        check_weights(model, model)
        self.model = model.eval()
        self.input_side: int = model.prompt_encoder.input_image_size
        self.processor = processor or _default_processor(self.kind, self.input_side)
        self._parts = read_family_parts(model, self.input_side) if is_stock_decoder(model) else None

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    def has_pixels(self, height: int, width: int) -> bool:
        """Return whether a crop of this size has a pixel at the network's size."""
        return min(self._input_size(height, width)) > 0

    def encode(self, crop: NDArray[Any], dtype: torch.dtype) -> EncodedCrop:
        """Run image processor and image encoder on a crop (h, w, 3), RGB."""
        height, width = crop.shape[:2]
        pixels = self._pixel_values(crop)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=dtype != torch.float32):
            features = self.model.get_image_embeddings(pixels)
        levels = [level.float() for level in _levels(features)]
        input_size = self._input_size(height, width)
        padded_side, unpadded_size = self._enlarged(levels[-1], input_size)
        is_exact = dtype == torch.float32 and self.device.type == "cpu" and self._parts is not None
        return EncodedCrop(
            decoder=self._decoder(levels, dtype, input_size),
            size=(height, width),
            upsampling_sizes=(padded_side, unpadded_size, (height, width)),
            point_scale=(input_size[1] / width, input_size[0] / height),
            input_side=self.input_side,
            mask_threshold=_MASK_THRESHOLD,
            device=self.device,
            key_bytes=dtype.itemsize * levels[-1].numel(),
            reference=partial(FamilyReferenceDecoder, self.model, levels) if is_exact else None,
            embedding=levels[-1][0],
        )

    def _pixel_values(self, crop: NDArray[Any]) -> Tensor:
        if crop.dtype != np.uint8:
            crop = np.asarray(to_pil_image(np.ascontiguousarray(crop)))
        channels_first = torch.tensor(crop).permute(2, 0, 1)  # a copy: the array may be read-only
        inputs = self.processor(
            images=[channels_first], input_data_format="channels_first", return_tensors="pt"
        )
        return inputs["pixel_values"].to(self.device)

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (h, w) of an image at the network's size: SAM pads to a square, the others stretch."""
        if self.kind != "hf_sam":
            return self.input_side, self.input_side
        scale = self.input_side * 1.0 / max(height, width)
        return int(height * scale + 0.5), int(width * scale + 0.5)

    def _enlarged(
        self, embedding: Tensor, input_size: tuple[int, int]
    ) -> tuple[int, tuple[int, int]]:
        """Return the side to which logits are enlarged first, and the image's part of it."""
        if self.kind == "hf_sam":
            return self.input_side, input_size
        low_side = 4 * embedding.shape[-1]
        return low_side, (low_side, low_side)

    def _decoder(
        self, levels: list[Tensor], dtype: torch.dtype, input_size: tuple[int, int]
    ) -> PointDecoder:
        if self._parts is None:
            return ModuleDecoder(partial(self._call, levels))
        if len(levels) == 1:
            return image_decoder(self._parts, levels[0], dtype, input_size)
        full, half, embedding = levels
        return image_decoder(self._parts, embedding, dtype, fine=FineFeatures(half=half, full=full))

    def _call(self, levels: list[Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, M, h, w) and predicted IoUs (B, M) of the model's own forward pass."""
        outputs = self.model(
            image_embeddings=levels if self.kind != "hf_sam" else levels[0],
            input_points=points[None, :, None],
            input_labels=torch.ones((1, len(points), 1), dtype=torch.int64, device=points.device),
        )
        return outputs.pred_masks[0], outputs.iou_scores[0]


def kind_of_module(model: Any) -> str:
    """Return the kind of a model of transformers.

    Raises:
        ConfigError: it is not one of the family, or has no point prompts.
    """
    names = [
        cls.__name__ for cls in type(model).__mro__ if cls.__module__.startswith("transformers.")
    ]
    kind = next((KINDS[name] for name in names if name in KINDS), None)
    if kind is None:
        raise ConfigError(
            f"model is a {type(model).__name__}; allowed are segment_anything's Sam, transformers'"
            f" {', '.join(KINDS)}, and modules with image_encoder, prompt_encoder and mask_decoder;"
            " load one of these"
        )
    return kind


def check_weights(model: torch.nn.Module, *float32_parts: torch.nn.Module) -> None:
    """Raise ConfigError if weights are on the meta device, or parts of a model are not in float32.

    Args:
        model: named in the error.
        float32_parts: modules of the model that this package calls with float32 numbers.
    """
    name = type(model).__name__
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ConfigError(
            f"the {name} is on the meta device, where it has no weights: load it with weights, on a"
            " CPU or a GPU"
        )
    dtypes = {p.dtype for part in float32_parts for p in part.parameters()} - {torch.float32}
    if dtypes:
        raise ConfigError(
            f"the weights of the {name} are {dtypes.pop()} and must be float32: call model.float(),"
            " and choose dtype=torch.bfloat16 for a faster generator"
        )


def _levels(features: Any) -> list[Tensor]:
    """Return the image features from fine to coarse; the last one is the embedding."""
    return list(features) if isinstance(features, list | tuple) else [features]


def _default_processor(kind: str, side: int) -> Any:
    import transformers

    square = {"height": side, "width": side}
    cls = getattr(transformers, _PROCESSORS[kind])
    if kind == "hf_sam":
        return cls(size={"longest_edge": side}, pad_size=square)
    return cls(size=square)
