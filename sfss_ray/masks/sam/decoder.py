"""SAM's mask decoder for many point prompts of one image: the same numbers with less work.

Notation: B points, T tokens each (IoU, masks, point, padding), N image positions ("keys") of C
channels. The stock decoder copies the image for every point. image_attention.py explains how its
layers are rearranged so that only the tokens attend to the image.

Pixels last. A 2x2 transposed convolution with stride 2 is one matrix product per position. Positions
stay in rows until the end, and only masks that pass the IoU threshold are made. Tokens also attend to
the positions of the padding, half of all positions for an image twice as wide as high, but no pixels
are made from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from segment_anything.modeling import PromptEncoder, Sam
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.masks.sam.image_attention import (
    ImageAttention,
    ImageUpdate,
    Layer,
    SharedImageAttention,
    layer_norm,
)
from sfss_ray.masks.sam.upsample import unpadded_low_size

if TYPE_CHECKING:
    from sfss_ray.masks.sam.family_parts import FamilyParts, PromptParts

# Points whose masks are upscaled together: the 16 pixels of a position are the decoder's largest
# arrays, and for a single point they fit a CPU's caches.
_UPSCALED_AT_ONCE = {"cpu": 1, "cuda": 64}


@dataclass(frozen=True)
class DecodedPoints:
    """Masks of a batch of points, on the model's device.

    Attributes:
        predicted_iou: float32 (B, M), for each of a point's M masks.
        passed: int64 (K,), indices into predicted_iou.flatten() of the masks above the threshold.
        logits: float32 (K, h, w), low-resolution logits of those masks. Rows at the bottom and columns
            at the right that no pixel of the image touches may be missing.
        low_size: (h, w) with no row or column missing.
    """

    predicted_iou: Tensor
    passed: Tensor
    logits: Tensor
    low_size: tuple[int, int]


@dataclass(frozen=True)
class FineFeatures:
    """Features that SAM 2 adds in the upscaling, after its first and its second convolution.

    Attributes:
        half: float32 (1, C / 4, 2 h, 2 w).
        full: float32 (1, C / 8, 4 h, 4 w).
    """

    half: Tensor
    full: Tensor

    def rows(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return both in the order of the decoder's products: (1, n, C) and (1, 4 n, C / 2)."""
        half = self.half[0].unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (C, h, dy, w, dx)
        full = self.full[0].unflatten(2, (-1, 2, 2)).unflatten(1, (-1, 2, 2))
        half, full = half.permute(1, 3, 2, 4, 0), full.permute(1, 4, 2, 5, 3, 6, 0)
        rows = half.flatten(2).flatten(0, 1), full.flatten(4).flatten(0, 3)
        return rows[0][None].to(dtype), rows[1][None].to(dtype)


class SharedImageDecoder:
    """The stock mask decoder, rearranged as the module's docstring explains.

    Tokens stay in float32 for every dtype because they cost little.

    Args:
        sam: a model for which stock_modules.is_stock() is true, or the parts of another model of the
            family under the same names (family_parts.py).
        embedding: float32 (1, C, h, w), the image encoder's output.
        dtype: of the image side, torch.float32 or torch.bfloat16.
        input_size: (h, w) of the image at the network's size, without padding; None for no padding.
        fine: of an image of SAM 2, which has no padding.
    """

    def __init__(
        self,
        sam: Sam | FamilyParts,
        embedding: Tensor,
        dtype: torch.dtype,
        input_size: tuple[int, int] | None = None,
        fine: FineFeatures | None = None,
    ) -> None:
        self._sam, self.embedding, self._dtype = sam, embedding, dtype
        self._decoder: Any = sam.mask_decoder  # its layers are typed as plain modules
        conv1, _, _, conv2, _ = self._decoder.output_upscaling
        fine_rows = (None, None) if fine is None else fine.rows(dtype)
        self._products = [
            ConvProduct(conv, dtype, rows)
            for conv, rows in zip((conv1, conv2), fine_rows, strict=True)
        ]
        tokens = [self._decoder.iou_token.weight, self._decoder.mask_tokens.weight]
        # SAM 2 puts the token of its object score first.
        first = getattr(self._decoder, "obj_score_token", None)
        self._output_tokens = torch.cat(tokens if first is None else [first.weight, *tokens])
        height, width = embedding.shape[-2:]
        self._grid = height, width
        self._low_size = 4 * height, 4 * width
        unpadded = unpadded_low_size(self._low_size, sam.image_encoder.img_size, input_size)
        self._unpadded_grid = -(-unpadded[0] // 4), -(-unpadded[1] // 4)
        keys = embedding + sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        keys = keys[0].flatten(1).T.contiguous()
        pe = sam.prompt_encoder.get_dense_pe()[0].flatten(1).T
        self._keys = keys.to(dtype)[None]
        self._build_layers(keys, pe)

    def _build_layers(self, keys: Tensor, pe: Tensor) -> None:
        """Precompute what all points share, for float32 keys (N, C) and their encodings (N, C)."""
        dtype = self._dtype
        # All points share the keys of the first layer; later layers have keys of their own.
        first, *later = self._decoder.transformer.layers
        self._layers = [
            Layer(
                first,
                SharedImageAttention(first.cross_attn_token_to_image, keys, pe, dtype),
                ImageUpdate(first, keys + pe, same_keys=True, dtype=dtype),
            )
        ]
        for layer in later:
            attention = ImageAttention(layer.cross_attn_token_to_image, pe, dtype)
            self._layers.append(
                Layer(layer, attention, ImageUpdate(layer, pe, same_keys=False, dtype=dtype))
            )
        self._last_attention = ImageAttention(
            self._decoder.transformer.final_attn_token_to_image, pe, dtype
        )

    def decode(self, points: Tensor, pred_iou_thresh: float | None) -> DecodedPoints:
        """Return the masks of foreground points (B, 2), (x, y) in pixels of the model input.

        Only masks with a predicted IoU above `pred_iou_thresh` are made, or all if it is None.
        """
        iou_token, mask_tokens, keys = self._attend(points)
        predicted_iou = self._decoder.iou_prediction_head(iou_token)[:, 1:].float()
        passed = _passing(predicted_iou, pred_iou_thresh)
        if not len(passed):
            h, w = self._unpadded_grid
            no_logits = predicted_iou.new_zeros((0, 4 * h, 4 * w))
            return DecodedPoints(predicted_iou, passed, no_logits, self._low_size)
        logits = self._shuffle_pixels(self._masks(mask_tokens, keys, passed))
        return DecodedPoints(predicted_iou, passed, logits, self._low_size)

    def _masks(self, mask_tokens: Tensor, keys: Any, passed: Tensor) -> Tensor:
        """Return logits (K, n * 16) of the masks at the indices `passed` into all masks (B, M)."""
        # Masks of one point share its upscaled image.
        point, mask = passed // mask_tokens.shape[1], passed % mask_tokens.shape[1]
        rows, row_of_mask = torch.unique(point, return_inverse=True)
        batches = rows.split(_UPSCALED_AT_ONCE.get(passed.device.type, 1))
        keys = self._without_padding(keys)
        rasters = torch.cat([self._mask_rasters(mask_tokens[b], keys[b]) for b in batches])
        return rasters[row_of_mask, mask]

    def _without_padding(self, keys: Tensor) -> Tensor:
        """Select the positions of keys (B, N, C) from which pixels of the image are made."""
        h, w = self._unpadded_grid
        return keys.unflatten(1, self._grid)[:, :h, :w].flatten(1, 2)

    def _first_keys(self, n_points: int) -> Any:
        """Return the keys (B, N, C) before the first layer."""
        return self._keys.expand(n_points, -1, -1)

    def _attend(self, points: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Return the final IoU token (B, C), the tokens of M masks (B, M, C) and keys (B, N, C)."""
        sparse = embed_points(self._sam.prompt_encoder, points)
        output_tokens = self._output_tokens
        tokens = torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
        queries, keys = tokens, self._first_keys(len(sparse))
        for layer in self._layers:
            queries, keys = layer.run(queries, tokens, keys)
        # The remaining tokens, the point's and that of the single mask, have no further use.
        queries, tokens = (self._used_tokens(x) for x in (queries, tokens))
        queries = queries + self._last_attention(queries + tokens, keys)
        queries = self._decoder.transformer.norm_final_attn(queries)
        return queries[:, 0], queries[:, 1:], keys

    def _used_tokens(self, tokens: Tensor) -> Tensor:
        """Select the tokens of the IoU and of the multimask outputs."""
        iou = len(self._output_tokens) - 1 - self._decoder.num_mask_tokens
        multimask = slice(iou + 2, len(self._output_tokens))
        return torch.cat([tokens[:, iou : iou + 1], tokens[:, multimask]], dim=1)

    def _mask_rasters(self, mask_tokens: Tensor, keys: Tensor) -> Tensor:
        """Return logits (b, M, n * 16) of the multimask outputs of b points, 16 per position."""
        _, norm, act1, _, act2 = self._decoder.output_upscaling
        first, second = self._products
        x = first(keys)
        x = act1(layer_norm(x, norm.weight, norm.bias, norm.eps))
        x = act2(second(x))
        networks = self._decoder.output_hypernetworks_mlps[1:]
        pairs = zip(networks, mask_tokens.unbind(1), strict=True)
        filters = torch.stack([network(token) for network, token in pairs], dim=1)
        return torch.bmm(filters.to(self._dtype), x.mT)

    def _shuffle_pixels(self, rasters: Tensor) -> Tensor:
        """Reorder (K, n * 16) of the n = h * w positions without padding to float32 (K, 4 h, 4 w).

        A position holds the 2x2 pixels of the first convolution, and each of these holds the 2x2
        pixels of the second. The order is therefore (y, x, dy1, dx1, dy2, dx2).
        """
        h, w = self._unpadded_grid
        pixels = rasters.float().view(len(rasters), h, w, 2, 2, 2, 2)
        return pixels.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(rasters), 4 * h, 4 * w)


def embed_points(encoder: PromptEncoder | PromptParts, points: Tensor) -> Tensor:
    """Return the stock encoder's sparse embedding (B, 2, C) of foreground points (B, 2).

    Each point is one prompt. The second token says that there is no box. The stock encoder finds it by
    comparing labels, which makes the CPU wait for a GPU; here it is known in advance.
    """
    pair = torch.stack([points + 0.5, torch.zeros_like(points)], dim=1)  # the middle of a pixel
    code = encoder.pe_layer.forward_with_coords(pair, encoder.input_image_size)[:, 0]
    code = code + cast(nn.Embedding, encoder.point_embeddings[1]).weight
    return torch.stack([code, encoder.not_a_point_embed.weight.expand_as(code)], dim=1)


def _passing(predicted_iou: Tensor, pred_iou_thresh: float | None) -> Tensor:
    flat = predicted_iou.flatten()
    if pred_iou_thresh is None:
        return torch.arange(len(flat), device=flat.device)
    return torch.nonzero(flat > pred_iou_thresh)[:, 0]


class ConvProduct:
    """A 2x2 transposed convolution with stride 2 as one matrix product.

    Maps (b, n, C) to (b, 4 n, C'), with the pixel offsets (dy, dx) innermost.

    Args:
        conv: the convolution.
        dtype: of the product.
        added: (1, n, 4 C') rows of the image that every point adds to its own. The product starts from
            them, which saves a pass over the decoder's largest arrays.
    """

    def __init__(
        self, conv: nn.ConvTranspose2d, dtype: torch.dtype, added: Tensor | None = None
    ) -> None:
        self.weight, self._channels = product_weight(conv).to(dtype), conv.out_channels
        self._bias = bias = None if conv.bias is None else conv.bias.repeat(4).to(dtype)
        self._added = added if added is None or bias is None else added + bias

    def __call__(self, x: Tensor, positions: slice = slice(None)) -> Tensor:
        """Return (b, 4 n, C') for x (b, n, C), which are all positions or some."""
        if self._added is None:
            y = F.linear(x, self.weight, self._bias)
        else:
            weight = self.weight.T.expand(len(x), -1, -1)
            y = torch.baddbmm(self._added[:, positions].expand(len(x), -1, -1), x, weight)
        return y.unflatten(2, (-1, self._channels)).flatten(1, 2)

    @property
    def constant(self) -> Tensor:
        """What is added to the products of all points: (n, 4 C'), or one row for all positions."""
        if self._added is not None:
            return self._added[0]
        return (
            self.weight.new_zeros(1, len(self.weight)) if self._bias is None else self._bias[None]
        )


def product_weight(conv: nn.ConvTranspose2d) -> Tensor:
    """Return the weight (2 * 2 * C', C) of a 2x2 transposed convolution as a linear layer."""
    return conv.weight.permute(2, 3, 1, 0).flatten(0, 2)
