"""A mask decoder whose logits equal those of the stock generator to the last bit.

Floating-point sums depend on their order, and the order depends on the number of rows in a matrix
product: a library uses other kernels for very few rows. Two points suffice for the products over the
image, and four rows for the small networks that make a mask's filter. This was measured with MKL and
oneDNN, whose results do not change with larger batches. With a library that behaves differently the
logits are as close as any other float32 logits.
"""

from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sfss_ray.masks.sam.decoder import embed_points

_POINTS_AT_ONCE = 2
_MIN_ROWS_OF_SMALL_NETWORKS = 4


class ReferenceDecoder:
    """Runs the modules of a stock mask decoder in the order in which it runs them itself.

    Args:
        sam: a model for which stock_modules.is_stock() is true.
        embedding: float32 (1, C, h, w), the image encoder's output.
    """

    def __init__(self, sam: Sam, embedding: Tensor) -> None:
        self._sam = sam
        self._decoder: Any = sam.mask_decoder  # its layers are typed as plain modules
        self._pe = sam.prompt_encoder.get_dense_pe()
        self._image = embedding + sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)

    def logits(self, points: Tensor, outputs: Tensor) -> Tensor:
        """Return low-resolution logits of one mask per point, float32 (n, 4 h, 4 w).

        Args:
            points: (n, 2), foreground, (x, y) in pixels of the model input; n at least 1.
            outputs: int64 (n,), index among the point's multimask outputs, from 0.
        """
        prompts, prompt_of_mask = torch.unique(points, dim=0, return_inverse=True)
        n = len(prompts)
        # The last batch is filled up with the first points: it must not be smaller than the others.
        padded_indices = torch.arange(-(-n // _POINTS_AT_ONCE) * _POINTS_AT_ONCE) % n
        batches = padded_indices.split(_POINTS_AT_ONCE)
        logits = torch.cat([self._decode_batch(prompts[batch]) for batch in batches])
        # Output 0 is the single mask, which stock uses for several prompts.
        return logits[prompt_of_mask, 1 + outputs]

    def _decode_batch(self, points: Tensor) -> Tensor:
        """Return all outputs of points (n, 2), float32 (n, M, 4 h, 4 w)."""
        n, decoder = len(points), self._decoder
        _, channels, height, width = self._image.shape
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        sparse = embed_points(self._sam.prompt_encoder, points)
        tokens = torch.cat([output_tokens.expand(n, -1, -1), sparse], dim=1)
        image, pe = (x.repeat_interleave(n, dim=0) for x in (self._image, self._pe))
        tokens, keys = decoder.transformer(image, pe, tokens)
        del image, pe  # they are large
        upscaled = decoder.output_upscaling(keys.mT.view(n, channels, height, width))
        masks = self._filters(tokens[:, 1 : 1 + decoder.num_mask_tokens]) @ upscaled.flatten(2)
        return masks.unflatten(2, upscaled.shape[2:])

    def _filters(self, mask_tokens: Tensor) -> Tensor:
        """Map mask tokens (n, M, C) to (n, M, channels of the upscaled image)."""
        n = len(mask_tokens)
        rows = mask_tokens.repeat(-(-_MIN_ROWS_OF_SMALL_NETWORKS // n), 1, 1)
        networks = zip(self._decoder.output_hypernetworks_mlps, rows.unbind(1), strict=True)
        return torch.stack([network(token)[:n] for network, token in networks], dim=1)
