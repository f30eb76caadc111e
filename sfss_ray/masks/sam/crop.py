"""The image encoder on one crop: pixels in, an embedding and a mask decoder out."""

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from sfss_ray.masks.sam.decoder import SharedImageDecoder
from sfss_ray.masks.sam.encoder import encode_image
from sfss_ray.masks.sam.promptable import EncodedCrop
from sfss_ray.masks.sam.reference_decoder import ReferenceDecoder
from sfss_ray.masks.sam.replaced_parts import not_one_tensor
from sfss_ray.masks.sam.resize import PillowResize


def encode_crop(
    predictor: SamPredictor, cropped: NDArray[Any], dtype: torch.dtype, resize: PillowResize
) -> EncodedCrop:
    """Run the image encoder as SamPredictor.set_image does.

    Args:
        predictor: holds the model. replaced_part() must find nothing in it. Its state is not changed.
        cropped: (h, w, 3), RGB, uint8 or floating as torchvision's to_pil_image takes it.
        dtype: torch.float32, or torch.bfloat16 to run under autocast.
        resize: used on a GPU.

    Raises:
        ConfigError: the image encoder returns something other than one tensor.
    """
    sam = predictor.model
    height, width = cropped.shape[:2]
    input_size = predictor.transform.get_preprocess_shape(height, width, sam.image_encoder.img_size)
    if sam.image_format != "RGB":
        cropped = cropped[..., ::-1]
    with torch.autocast(sam.device.type, torch.bfloat16, enabled=dtype != torch.float32):
        if sam.device.type == "cpu":
            embedding = _embed_on_cpu(predictor, cropped)
        else:
            embedding = _embed_on_device(predictor, cropped, input_size, resize)
    if not isinstance(embedding, Tensor):
        raise not_one_tensor(sam.image_encoder, embedding)
    grid = sam.prompt_encoder.image_embedding_size
    embedding = embedding.float().expand(1, -1, *grid)
    decoder = SharedImageDecoder(sam, embedding, dtype, input_size)
    is_exact = dtype == torch.float32 and sam.device.type == "cpu"
    return EncodedCrop(
        decoder=decoder,
        size=(height, width),
        upsampling_sizes=(sam.image_encoder.img_size, input_size, (height, width)),
        point_scale=(input_size[1] / width, input_size[0] / height),
        input_side=sam.image_encoder.img_size,
        mask_threshold=sam.mask_threshold,
        device=sam.device,
        key_bytes=dtype.itemsize * embedding[0].numel(),
        reference=partial(ReferenceDecoder, sam, embedding) if is_exact else None,
        embedding=embedding[0],
    )


def _embed_on_cpu(predictor: SamPredictor, cropped: NDArray[Any]) -> Any:
    """Encode as predictor.set_image does, with an encoder that suits a CPU.

    The channels of `cropped` are in the model's order.
    """
    sam, resized = predictor.model, predictor.transform.apply_image(cropped)
    pixels = torch.as_tensor(resized).permute(2, 0, 1)[None].contiguous()
    return encode_image(sam.image_encoder, sam.preprocess(pixels))


def _embed_on_device(
    predictor: SamPredictor,
    cropped: NDArray[Any],
    input_size: tuple[int, int],
    resize: PillowResize,
) -> Any:
    """Encode as predictor.set_image does, without work on the CPU and without copies in between."""
    sam = predictor.model
    if cropped.dtype != np.uint8:
        cropped = np.asarray(to_pil_image(cropped))
    resized = resize(np.require(cropped, requirements=["C", "W"]), input_size, sam.device)
    pixels = resized.permute(2, 0, 1)[None].contiguous()
    # The encoder makes its tables of positions on the default device and then copies them to its own.
    with sam.device:
        return sam.image_encoder(sam.preprocess(pixels))
