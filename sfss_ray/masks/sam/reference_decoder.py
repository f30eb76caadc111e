"""A mask decoder whose logits equal those of the stock generator to the last bit.

Floating-point sums depend on their order, and the order depends on the number of rows in a matrix
product: a library uses other kernels for very few rows. Two points suffice for the products over the
image. The small networks that make a mask's filter need four rows, and sixteen with AVX-512. This was
measured with MKL and oneDNN, whose results do not change with larger batches. With a library that
behaves differently the logits are as close as any other float32 logits.
"""

from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sfss_ray.masks.sam.decoder import embed_points

_POINTS_AT_ONCE = 2
_MIN_ROWS_OF_SMALL_NETWORKS = 16


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
        mask_tokens, upscaled = self._run(points)
        masks = self._filters(mask_tokens) @ upscaled.flatten(2)
        return masks.unflatten(2, upscaled.shape[2:])

    def _run(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask tokens (n, M, C) and the upscaled image (n, C / 8, 4 h, 4 w) of points (n, 2)."""
        n, decoder = len(points), self._decoder
        _, channels, height, width = self._image.shape
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        sparse = embed_points(self._sam.prompt_encoder, points)
        tokens = torch.cat([output_tokens.expand(n, -1, -1), sparse], dim=1)
        image, pe = (x.repeat_interleave(n, dim=0) for x in (self._image, self._pe))
        tokens, keys = decoder.transformer(image, pe, tokens)
        del image, pe  # they are large
        upscaled = decoder.output_upscaling(keys.mT.view(n, channels, height, width))
        return tokens[:, 1 : 1 + decoder.num_mask_tokens], upscaled

    def _filters(self, mask_tokens: Tensor) -> Tensor:
        """Map mask tokens (n, M, C) to (n, M, channels of the upscaled image)."""
        n = len(mask_tokens)
        rows = mask_tokens.repeat(-(-_MIN_ROWS_OF_SMALL_NETWORKS // n), 1, 1)
        networks = zip(self._decoder.output_hypernetworks_mlps, rows.unbind(1), strict=True)
        return torch.stack([network(token)[:n] for network, token in networks], dim=1)


class FamilyReferenceDecoder(ReferenceDecoder):
    """The same for a model of transformers, as its pipeline calls it.

    Args:
        model: a SamModel, Sam2Model or Sam3TrackerModel whose decoder is_stock_decoder() accepts.
        levels: image features from fine to coarse, float32; the last one is the embedding.
    """

    def __init__(self, model: Any, levels: list[Tensor]) -> None:
        self._prompt_encoder, self._decoder = model.prompt_encoder, model.mask_decoder
        self._pe = model.get_image_wide_positional_embeddings()
        embedding = levels[-1]
        self._fine = levels[:-1]
        self._image = embedding + self._prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)

    def _run(self, points: Tensor) -> tuple[Tensor, Tensor]:
        n, decoder = len(points), self._decoder
        output_tokens = [decoder.iou_token.weight, decoder.mask_tokens.weight]
        if self._fine:  # SAM 2 and SAM 3 put the token of an object score first
            output_tokens.insert(0, decoder.obj_score_token.weight)
        sparse, _ = self._prompt_encoder(
            points[None, :, None], torch.ones((1, n, 1), dtype=torch.int64), None, None
        )
        tokens = torch.cat([torch.cat(output_tokens).expand(1, n, -1, -1), sparse], dim=2)
        image, pe = (x.repeat_interleave(n, dim=0) for x in (self._image, self._pe))
        tokens, keys = decoder.transformer(
            point_embeddings=tokens, image_embeddings=image, image_positional_embeddings=pe,
            attention_similarity=None,
        )  # fmt: skip
        del image, pe  # they are large
        first_mask = len(output_tokens) - 1
        mask_tokens = tokens[0, :, first_mask : first_mask + decoder.num_mask_tokens]
        return mask_tokens, self._upscale(keys.mT.reshape(n, *self._image.shape[1:]))

    def _upscale(self, x: Tensor) -> Tensor:
        """Return the upscaled image (n, C / 8, 4 h, 4 w) of keys (n, C, h, w)."""
        decoder, act = self._decoder, self._decoder.activation
        full, half = self._fine or (None, None)
        x = decoder.upscale_conv1(x)
        x = act(decoder.upscale_layer_norm(x if half is None else x.add_(half)))
        x = decoder.upscale_conv2(x)
        return act(x if full is None else x.add_(full))
