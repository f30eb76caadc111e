"""SAM's mask decoder for many point prompts of one image: the same numbers with less work.

Notation: B points, T tokens each (quality, masks, point, padding), N image positions ("keys") of C
channels. The stock decoder copies the image for every point; image_attention.py says how its layers
are rearranged so that only tokens look at it.

Pixels last. A 2x2 transposed convolution with stride 2 is a matrix product per position; positions
stay in rows until the masks are there, and only masks that pass the quality threshold are made.
Positions of the padding, half of them for an image twice as wide as high, are looked at by the tokens
but make no pixels.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from segment_anything.modeling import PromptEncoder, Sam
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.masks.sam.image_attention import (
    ImageAttention,
    ImageUpdate,
    Layer,
    SharedImageAttention,
    normalise,
)
from sfss_ray.masks.sam.upsample import low_size_seen

# Points whose masks are upscaled together: the 16 pixels of a position are the decoder's largest
# arrays, and a CPU has them in its caches for one point.
_UPSCALED_AT_ONCE = {"cpu": 1, "cuda": 64}


@dataclass(frozen=True)
class DecodedPoints:
    """Masks of a batch of points, on the model's device.

    Attributes:
        quality: float32 (B, M), the predicted IoU of each point's M masks.
        kept: int64 (K,), indices into quality.flatten() of the masks that passed the threshold.
        logits: float32 (K, h, w), low-resolution logits of those masks; rows at the bottom and columns
            at the right that no pixel of the image touches may be left out.
        low_size: (h, w) with nothing left out.
    """

    quality: Tensor
    kept: Tensor
    logits: Tensor
    low_size: tuple[int, int]


class SharedImageDecoder:
    """The stock decoder rearranged as the module's text says.

    Tokens stay in float32 for every dtype, they cost little; `dtype` is that of the image side.

    Args:
        sam: a model for which stock_modules.is_stock() is true.
        embedding: float32 (1, C, h, w), the image encoder's output.
        dtype: torch.float32 or torch.bfloat16.
        input_size: (h, w) of the image as the model sees it, without padding; None for no padding.
    """

    def __init__(
        self,
        sam: Sam,
        embedding: Tensor,
        dtype: torch.dtype,
        input_size: tuple[int, int] | None = None,
    ) -> None:
        self._sam, self._dtype = sam, dtype
        self._decoder: Any = sam.mask_decoder  # its layers are typed as plain modules
        height, width = embedding.shape[-2:]
        self._grid = height, width
        self._low_size = 4 * height, 4 * width
        seen = low_size_seen(self._low_size, sam.image_encoder.img_size, input_size)
        self._seen_grid = -(-seen[0] // 4), -(-seen[1] // 4)
        keys = embedding + sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        keys = keys[0].flatten(1).T.contiguous()
        pe = sam.prompt_encoder.get_dense_pe()[0].flatten(1).T
        self._keys = keys.to(dtype)[None]
        first, *others = self._decoder.transformer.layers
        self._layers = [
            Layer(
                first,
                SharedImageAttention(first.cross_attn_token_to_image, keys, pe, dtype),
                ImageUpdate(first, keys + pe, same_keys=True, dtype=dtype),
            )
        ]
        for layer in others:
            attention = ImageAttention(layer.cross_attn_token_to_image, pe, dtype)
            self._layers.append(
                Layer(layer, attention, ImageUpdate(layer, pe, same_keys=False, dtype=dtype))
            )
        self._last_attention = ImageAttention(
            self._decoder.transformer.final_attn_token_to_image, pe, dtype
        )

    def decode(self, points: Tensor, min_quality: float | None) -> DecodedPoints:
        """Masks of foreground points (B, 2), (x, y) in pixels of the model input.

        With `min_quality` only masks of a greater predicted IoU are made, else all.
        """
        quality_token, mask_tokens, keys = self._attend(points)
        quality = self._decoder.iou_prediction_head(quality_token)[:, 1:].float()
        kept = _passing(quality, min_quality)
        if not len(kept):
            h, w = self._seen_grid
            none = quality.new_zeros((0, 4 * h, 4 * w))
            return DecodedPoints(quality, kept, none, self._low_size)
        point, mask = kept // quality.shape[1], kept % quality.shape[1]
        rows, row_of_mask = torch.unique(point, return_inverse=True)
        parts = rows.split(_UPSCALED_AT_ONCE.get(points.device.type, 1))
        keys = self._seen_positions(keys)
        rasters = torch.cat([self._mask_rasters(mask_tokens[part], keys[part]) for part in parts])
        logits = self._shuffle_pixels(rasters[row_of_mask, mask])
        return DecodedPoints(quality, kept, logits, self._low_size)

    def _seen_positions(self, keys: Tensor) -> Tensor:
        """Those of keys (B, N, C) that make pixels of the image."""
        h, w = self._seen_grid
        return keys.unflatten(1, self._grid)[:, :h, :w].flatten(1, 2)

    def _attend(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The token of quality (B, C), those of M masks (B, M, C), and keys (B, N, C), at the end."""
        sparse = embed_points(self._sam.prompt_encoder, points)
        output = torch.cat([self._decoder.iou_token.weight, self._decoder.mask_tokens.weight])
        tokens = torch.cat([output.expand(len(sparse), -1, -1), sparse], dim=1)
        queries, keys = tokens, self._keys.expand(len(sparse), -1, -1)
        for layer in self._layers:
            queries, keys = layer.run(queries, tokens, keys)
        # Of the others, the point's and that of a single mask, nothing is read any more.
        queries, tokens = (self._read(x) for x in (queries, tokens))
        queries = queries + self._last_attention(queries + tokens, keys)
        queries = self._decoder.transformer.norm_final_attn(queries)
        return queries[:, 0], queries[:, 1:], keys

    def _read(self, tokens: Tensor) -> Tensor:
        """The tokens of quality and of the multimask outputs."""
        of_masks = slice(2, 1 + self._decoder.num_mask_tokens)
        return torch.cat([tokens[:, :1], tokens[:, of_masks]], dim=1)

    def _mask_rasters(self, mask_tokens: Tensor, keys: Tensor) -> Tensor:
        """Logits (b, M, n * 16) of the multimask outputs of b points, 4 x 4 pixels a position."""
        conv1, norm, act1, conv2, act2 = self._decoder.output_upscaling
        x = _conv_as_product(conv1, keys)
        x = act1(normalise(x, norm.weight, norm.bias, norm.eps))
        x = act2(_conv_as_product(conv2, x))
        networks = self._decoder.output_hypernetworks_mlps[1:]
        pairs = zip(networks, mask_tokens.unbind(1), strict=True)
        filters = torch.stack([network(token) for network, token in pairs], dim=1)
        return torch.bmm(filters.to(self._dtype), x.mT)

    def _shuffle_pixels(self, rasters: Tensor) -> Tensor:
        """(K, n * 16) of the n = h * w positions that are seen, to float32 (K, 4 h, 4 w).

        A position holds the 2x2 pixels of the first convolution and each of those the 2x2 of the
        second, so that the order is (y, x, dy1, dx1, dy2, dx2).
        """
        h, w = self._seen_grid
        pixels = rasters.float().view(len(rasters), h, w, 2, 2, 2, 2)
        return pixels.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(rasters), 4 * h, 4 * w)


def embed_points(encoder: PromptEncoder, points: Tensor) -> Tensor:
    """The stock encoder's sparse embedding (B, 2, C) of foreground points (B, 2), one a prompt.

    The second token says that there is no box. The encoder looks for it among the labels, for which
    a GPU is waited for.
    """
    pair = torch.stack([points + 0.5, torch.zeros_like(points)], dim=1)  # the middle of a pixel
    code = encoder.pe_layer.forward_with_coords(pair, encoder.input_image_size)[:, 0]
    code = code + cast(nn.Embedding, encoder.point_embeddings[1]).weight
    return torch.stack([code, encoder.not_a_point_embed.weight.expand_as(code)], dim=1)


def _passing(quality: Tensor, min_quality: float | None) -> Tensor:
    flat = quality.flatten()
    if min_quality is None:
        return torch.arange(len(flat), device=flat.device)
    return torch.nonzero(flat > min_quality)[:, 0]


def _conv_as_product(conv: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A 2x2 transposed convolution with stride 2: (b, n, C) to (b, 4 n, C'), (dy, dx) innermost."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * C', C)
    channels = conv.out_channels
    bias = None if conv.bias is None else conv.bias.repeat(4).to(x.dtype)
    y = F.linear(x, weight.to(x.dtype), bias)
    return y.unflatten(2, (-1, channels)).flatten(1, 2)
