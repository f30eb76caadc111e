"""A second decoding of masks in which rounding decides a pixel, in the stock order of sums."""

from dataclasses import replace

import torch

from sfss_ray.masks.sam.candidates import CropMasks
from sfss_ray.masks.sam.measure_cpu import PackedMasks, pack_in_box
from sfss_ray.masks.sam.promptable import EncodedCrop
from sfss_ray.masks.sam.upsample import enlarge_as_stock

_MASKS_AT_ONCE = 16  # bounds the low-resolution logits in memory


def recompute_ambiguous(crop: EncodedCrop, candidates: CropMasks) -> CropMasks:
    """Return the masks with the pixels that the stock generator computes where rounding decides.

    SharedImageDecoder and RegionUpsampler sum the same terms in another order, so the last bits of a
    logit differ. They matter only if the logit is that close to the mask threshold. Such masks are
    decoded and enlarged again. On a GPU and in bfloat16 nothing is done.

    Args:
        crop: the encoded crop.
        candidates: the masks that survived all filters.
    """
    packed = candidates.masks
    if not isinstance(packed, PackedMasks) or crop.reference is None:
        return candidates
    ambiguous = [k for k, mask in enumerate(packed.masks) if mask.ambiguous]
    if not ambiguous:
        return candidates
    # Masks of one point come next to each other, so that they are decoded together.
    ambiguous.sort(key=lambda k: candidates.points[k].tolist())
    decoder, mask_threshold = crop.reference(), crop.mask_threshold
    masks, boxes = list(packed.masks), candidates.boxes.clone()
    for start in range(0, len(ambiguous), _MASKS_AT_ONCE):
        indices = ambiguous[start : start + _MASKS_AT_ONCE]
        points = crop.to_model_input(candidates.points[indices].numpy())
        logits = decoder.logits(points, candidates.outputs[indices])
        for k, low in zip(indices, logits, strict=True):
            pixels = enlarge_as_stock(low[None], *crop.upsampling_sizes)[0] > mask_threshold
            masks[k], box = pack_in_box(pixels.T.numpy())
            boxes[k] = torch.tensor(box)
    return replace(candidates, boxes=boxes, masks=PackedMasks(masks))
