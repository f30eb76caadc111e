"""Detects code that a caller put in place of segment_anything's, which the fast path would skip.

The fast path computes the results of segment_anything's functions and modules without calling them.
All of them are therefore checked: the methods of generator, predictor, transform and model, the
functions that these use, and the modules of mask decoder and prompt encoder. The check follows the
lookups of the stock code to the function that would run, and compares the module in which it was
written. Changes of an instance, a class or a module all count, even if they precede the import of this
package. The image encoder is not checked here because the fast path calls a changed one.
"""

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from segment_anything import SamAutomaticMaskGenerator, SamPredictor, automatic_mask_generator
from segment_anything.modeling import Sam
from segment_anything.utils import amg, transforms
from segment_anything.utils.transforms import ResizeLongestSide

from sfss_ray.errors import ConfigError
from sfss_ray.masks.sam.stock_modules import changes, is_method_of, origin

_GENERATOR_METHODS = ("_generate_masks", "_process_crop", "_process_batch")
_PREDICTOR_METHODS = ("set_image", "set_torch_image", "predict_torch", "reset_image")
_PREDICTOR_ATTRIBUTES = (
    "model",
    "transform",
    "features",
    "is_image_set",
    "original_size",
    "input_size",
)
_TRANSFORM_METHODS = ("apply_image", "apply_coords", "get_preprocess_shape")
_FUNCTIONS = {
    (automatic_mask_generator, "segment_anything.utils.amg"): (
        "area_from_rle", "batch_iterator", "batched_mask_to_box", "box_xyxy_to_xywh",
        "calculate_stability_score", "coco_encode_rle", "generate_crop_boxes",
        "is_box_near_crop_edge", "mask_to_rle_pytorch", "remove_small_regions", "rle_to_mask",
        "uncrop_boxes_xyxy", "uncrop_masks", "uncrop_points",
    ),
    (automatic_mask_generator, "torchvision.ops.boxes"): ("batched_nms", "box_area"),
    (transforms, "torchvision.transforms.functional"): ("resize", "to_pil_image"),
}  # fmt: skip
"""Keys: the module that uses the functions, and the module in which they are written."""
_DECODER_INPUTS = (
    "image_embeddings", "image_pe", "sparse_prompt_embeddings", "dense_prompt_embeddings",
    "multimask_output",
)  # fmt: skip
_ADVICE = "set generator.predictor to the predictor that comes with this model"


def replaced_part(generator: SamAutomaticMaskGenerator) -> str | None:
    """Return a clause about the first replaced part that the fast path would skip, or None."""
    return next(_replaced_parts(generator), None)


def _replaced_parts(generator: SamAutomaticMaskGenerator) -> Iterator[str]:
    """Yield the replaced parts. Each step relies on the parts that earlier steps found to be stock."""
    yield from _replaced_in_generator(generator)
    predictor = generator.predictor
    yield from _replaced_in_predictor(predictor)
    if not _runs_stock(predictor.model, "postprocess_masks", Sam):
        yield "generator.predictor.model.postprocess_masks is not segment_anything's"
    yield from _replaced_in_transform(predictor.transform, predictor.model)
    yield from changes(predictor.model, "generator.predictor.model")
    yield from _replaced_functions()


def _runs_stock(holder: object, name: str, owner: type) -> bool:
    """Return whether a call of holder.name runs the method in the source code of `owner`."""
    method = getattr(holder, name, None)
    return getattr(method, "__self__", holder) is holder and is_method_of(owner, method, name)


def _replaced_methods(
    holder: object, names: Iterable[str], owner: type, path: str
) -> Iterator[str]:
    return (f"{path}.{name} was replaced" for name in names if not _runs_stock(holder, name, owner))


def _replaced_in_generator(generator: SamAutomaticMaskGenerator) -> Iterator[str]:
    removal = ("postprocess_small_regions",) if generator.min_mask_region_area > 0 else ()
    names = (*_GENERATOR_METHODS, *removal)
    yield from _replaced_methods(generator, names, SamAutomaticMaskGenerator, "generator")
    generate = vars(SamAutomaticMaskGenerator).get("generate")
    if not is_method_of(SamAutomaticMaskGenerator, generate, "generate"):
        yield "SamAutomaticMaskGenerator.generate was replaced"


def _replaced_in_predictor(predictor: object) -> Iterator[str]:
    path = "generator.predictor"
    if type(predictor) is not SamPredictor:
        yield f"{path} is a {type(predictor).__name__}, not segment_anything's SamPredictor"
    yield from _replaced_methods(predictor, _PREDICTOR_METHODS, SamPredictor, path)
    device = vars(SamPredictor).get("device")
    if not is_method_of(SamPredictor, getattr(device, "fget", None), "device"):
        yield f"{path}.device was replaced"
    # A property of the class would run code where the fast path uses no attribute.
    yield from (
        f"{path}.{n} was replaced" for n in _PREDICTOR_ATTRIBUTES if hasattr(SamPredictor, n)
    )


def _replaced_in_transform(transform: Any, model: Any) -> Iterator[str]:
    path = "generator.predictor.transform"
    if type(transform) is not ResizeLongestSide:
        yield f"{path} is a {type(transform).__name__}, not segment_anything's ResizeLongestSide"
    yield from _replaced_methods(transform, _TRANSFORM_METHODS, ResizeLongestSide, path)
    if transform.target_length != model.image_encoder.img_size:
        yield (
            f"{path} makes images of {transform.target_length} pixels, while the image encoder takes"
            f" {model.image_encoder.img_size}"
        )


def _replaced_functions() -> Iterator[str]:
    for (user, source), names in _FUNCTIONS.items():
        for name in names:
            if origin(getattr(user, name, None)) != (source, name):
                yield f"{user.__name__}.{name} was replaced"
    if automatic_mask_generator.MaskData is not amg.MaskData:
        yield f"{automatic_mask_generator.__name__}.MaskData was replaced"


def mismatch(predictor: Any) -> ConfigError | None:
    """Return an error if segment_anything's SamPredictor cannot run its model, else None.

    Some variants of SAM, such as SAM-HQ, have an image encoder that returns several outputs and a mask
    decoder that takes them. They come with their own predictor, which the generator must use.
    """
    if type(predictor) is not SamPredictor:
        return None
    if isinstance(predictor.features, tuple | list | dict):
        return not_one_tensor(predictor.model.image_encoder, predictor.features)
    decoder = predictor.model.mask_decoder
    try:
        inspect.signature(decoder.forward).bind(**dict.fromkeys(_DECODER_INPUTS))
    except TypeError as error:
        return ConfigError(
            f"the mask decoder ({type(decoder).__name__}) cannot be called by segment_anything's"
            f" SamPredictor, which gives it {', '.join(_DECODER_INPUTS)} ({error}): {_ADVICE}"
        )
    return None


def not_one_tensor(encoder: object, features: object) -> ConfigError:
    """Return the error for an image encoder whose output the stock SamPredictor cannot use."""
    return ConfigError(
        f"the image encoder ({type(encoder).__name__}) returns a {type(features).__name__}, but"
        f" segment_anything's SamPredictor needs one tensor: {_ADVICE}"
    )
