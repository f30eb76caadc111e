"""SAM's mask decoder for many point prompts of one image: the same numbers with less work.

Notation: B points, T tokens each (quality, masks, point, padding), N image positions ("keys") of C
channels, H attention heads of d channels. The stock decoder copies the image for every point and
projects all N positions of every copy; but only T tokens look at them. Used here are:

Shared image. Before the first layer all points have the same keys: its projections of the image are
made once for the image, and all points' tokens meet them in one product.

Absorbed projections. For a token's query q and the key projection W_k, b_k of one head

    q . (W_k (key + pe) + b_k) = (W_k^T q) . key + q . (W_k pe) + const over positions

and the softmax over positions does not see the constant. W_k pe is made once for the image. For the
values, as attention weights a_n sum to 1,

    sum_n a_n (W_v key_n + b_v) = W_v (sum_n a_n key_n) + b_v.

So the B * N positions are multiplied with H * T columns in place of the internal dimension, twice,
and no projected image is written. From image to tokens the query projection is absorbed alike (its
bias stays, as a part of W_q pe + b_q), and value and output projection of the few tokens are
multiplied before the N positions use them.

Pixels last. A 2x2 transposed convolution with stride 2 is a matrix product per position; positions
stay in rows until the masks are there, and only masks that pass the quality threshold are made.
Positions of the padding, half of them for an image twice as wide as high, are looked at by the tokens
but make no pixels.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.masks.upsample import low_size_seen

_STOCK_MODULES = (
    MaskDecoder, TwoWayTransformer, TwoWayAttentionBlock, Attention, MLP, MLPBlock, LayerNorm2d,
    nn.Linear, nn.LayerNorm, nn.Embedding, nn.Sequential, nn.ModuleList, nn.ConvTranspose2d,
    nn.GELU, nn.ReLU, nn.SiLU, nn.LeakyReLU,
)  # fmt: skip

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


def is_stock(sam: Sam) -> bool:
    """Whether every module of decoder and prompt encoder is of a class whose algebra is known.

    Subclasses are not, nor modules with a method or a hook of their own: what they compute may differ.
    """
    known = all(type(module) in _STOCK_MODULES for module in sam.mask_decoder.modules())
    parts = (*sam.mask_decoder.modules(), *sam.prompt_encoder.modules())
    return (
        known
        and not any(is_patched(module) for module in parts)
        and type(sam.prompt_encoder) is PromptEncoder
        and (
            type(sam.mask_decoder.transformer) is TwoWayTransformer
            and len(sam.mask_decoder.transformer.layers) > 0
        )
    )


def is_patched(module: nn.Module) -> bool:
    """Whether this one module computes otherwise than its class: by hooks, or by a method of its own."""
    methods = (name for name in vars(module) if callable(getattr(type(module), name, None)))
    return bool(module._forward_hooks or module._forward_pre_hooks or any(methods))


class ModelDecoder:
    """Runs the model's own mask_decoder; for Sam variants whose algebra is not known.

    Args:
        sam: the model.
        embedding: float32 (1, C, h, w), the image encoder's output.
        dtype: torch.float32, or torch.bfloat16 to run under autocast.
    """

    def __init__(self, sam: Sam, embedding: Tensor, dtype: torch.dtype) -> None:
        self._sam, self._embedding, self._dtype = sam, embedding, dtype

    def decode(self, points: Tensor, min_quality: float | None) -> DecodedPoints:
        """Masks of foreground points (B, 2), (x, y) in pixels of the model input.

        With `min_quality` only masks of a greater predicted IoU are returned, else all.
        """
        sparse, dense = _embed_prompts(self._sam, points)
        reduced = self._dtype != torch.float32
        with torch.autocast(self._embedding.device.type, torch.bfloat16, enabled=reduced):
            logits, quality = self._sam.mask_decoder(
                image_embeddings=self._embedding,
                image_pe=self._sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
        quality = quality.float()
        kept = _passing(quality, min_quality)
        low_size = (logits.shape[-2], logits.shape[-1])
        return DecodedPoints(quality, kept, logits.flatten(0, 1)[kept].float(), low_size)


class SharedImageDecoder:
    """The stock decoder rearranged as the module's text says.

    Tokens stay in float32 for every dtype, they cost little; `dtype` is that of the image side.

    Args:
        sam: a model for which is_stock() is true.
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
            _Layer(
                first,
                _SharedImageAttention(first.cross_attn_token_to_image, keys, pe, dtype),
                _ImageUpdate(first, keys + pe, same_keys=True, dtype=dtype),
            )
        ]
        for layer in others:
            attention = _ImageAttention(layer.cross_attn_token_to_image, pe, dtype)
            self._layers.append(
                _Layer(layer, attention, _ImageUpdate(layer, pe, same_keys=False, dtype=dtype))
            )
        self._last_attention = _ImageAttention(
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
        x = act1(_normalise(x, norm.weight, norm.bias, norm.eps))
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


class _Layer:
    """One TwoWayAttentionBlock with its two cross attentions rearranged."""

    def __init__(
        self,
        block: TwoWayAttentionBlock,
        attention: "_SharedImageAttention | _ImageAttention",
        update: "_ImageUpdate",
    ) -> None:
        self._block, self._attention, self._update = block, attention, update

    def run(self, queries: Tensor, tokens: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        block = self._block
        if block.skip_first_layer_pe:
            queries = block.self_attn(q=queries, k=queries, v=queries)
        else:
            q = queries + tokens
            queries = queries + block.self_attn(q=q, k=q, v=queries)
        queries = block.norm1(queries)
        queries = block.norm2(queries + self._attention(queries + tokens, keys))
        queries = block.norm3(queries + block.mlp(queries))
        return queries, self._update(queries + tokens, queries, keys)


class _SharedImageAttention:
    """Tokens look at keys (N, C) that are the same for all points: both projections made once."""

    def __init__(self, attention: Attention, keys: Tensor, pe: Tensor, dtype: torch.dtype) -> None:
        self._attention = attention
        self._k = _by_head(attention.k_proj(keys + pe)[None], attention).mT.contiguous().to(dtype)
        self._v = _by_head(attention.v_proj(keys)[None], attention).to(dtype)

    def __call__(self, queries: Tensor, keys: Tensor) -> Tensor:
        q = _scaled(self._attention.q_proj(queries), self._attention).to(self._k.dtype)
        weights = torch.softmax(torch.bmm(q, self._k), dim=-1)
        seen = torch.bmm(weights, self._v).float()
        return self._attention.out_proj(_join_heads(seen, len(queries)))


class _ImageAttention:
    """Tokens look at keys (B, N, C) of their own point: key and value projection absorbed."""

    def __init__(self, attention: Attention, pe: Tensor, dtype: torch.dtype) -> None:
        self._attention = attention
        # Without b_k: it adds the same to all positions, which the softmax does not see.
        k_of_pe = F.linear(pe, attention.k_proj.weight)
        self._k_of_pe = _by_head(k_of_pe[None], attention).mT.contiguous().to(dtype)
        self._k_weight = _weight_by_head(attention.k_proj.weight, attention)
        self._v_weight = _weight_by_head(attention.v_proj.weight, attention)
        self._v_bias = attention.v_proj.bias.view(attention.num_heads, 1, -1)

    def __call__(self, queries: Tensor, keys: Tensor) -> Tensor:
        n_points, n_heads = len(queries), self._attention.num_heads
        q = _scaled(self._attention.q_proj(queries), self._attention)
        absorbed = _by_point(torch.bmm(q, self._k_weight), n_points).flatten(1, 2)
        logits = torch.bmm(absorbed.to(keys.dtype), keys.mT).unflatten(1, (n_heads, -1))
        logits += _by_point(torch.bmm(q.to(keys.dtype), self._k_of_pe), n_points)
        weights = torch.softmax(logits, dim=-1).flatten(1, 2)
        seen = torch.bmm(weights, keys).float().unflatten(1, (n_heads, -1))
        seen = seen.transpose(0, 1).flatten(1, 2)
        values = torch.baddbmm(self._v_bias, seen, self._v_weight.mT)
        return self._attention.out_proj(_join_heads(values, n_points))


class _ImageUpdate:
    """Image positions look at the tokens; returns the new keys (B, N, C).

    Args:
        block: the layer, for its image-to-token attention and its norm.
        image: (N, C), what of "key + positional encoding" is the same for all points: all of it
            with `same_keys`, else the encoding alone.
    """

    def __init__(
        self, block: TwoWayAttentionBlock, image: Tensor, same_keys: bool, dtype: torch.dtype
    ) -> None:
        self._norm, attention = block.norm4, block.cross_attn_image_to_token
        self._attention, self._same_keys = attention, same_keys
        self._q = _by_head(attention.q_proj(image)[None], attention).mT.contiguous().to(dtype)
        self._q_weight = _weight_by_head(attention.q_proj.weight, attention)
        self._out_weight = _weight_by_head(attention.out_proj.weight.T, attention)

    def __call__(self, token_keys: Tensor, token_values: Tensor, keys: Tensor) -> Tensor:
        n_points, n_heads = len(keys), self._attention.num_heads
        k = _scaled(self._attention.k_proj(token_keys), self._attention)
        logits = _by_point(torch.bmm(k.to(keys.dtype), self._q), n_points)
        if not self._same_keys:
            absorbed = _by_point(torch.bmm(k, self._q_weight), n_points).flatten(1, 2)
            own = torch.bmm(absorbed.to(keys.dtype), keys.mT)
            logits = own.unflatten(1, (n_heads, -1)).add_(logits)
        weights = torch.softmax(logits, dim=2).flatten(1, 2)
        values = self._projected_values(token_values).to(keys.dtype)
        # Keys of a point alone are overwritten: nothing else reads them, and a copy costs as much as
        # a fifth of the product.
        add = torch.baddbmm if self._same_keys else Tensor.baddbmm_
        updated = add(keys, weights.mT, values)
        return _normalise(updated, self._norm.weight, self._norm.bias, self._norm.eps)

    def _projected_values(self, token_values: Tensor) -> Tensor:
        """W_out W_v token for each head, (B, H * T, C).

        The output's bias goes to one head: its weights sum to 1 over the tokens, so it is added
        to each position exactly once.
        """
        v = _by_head(self._attention.v_proj(token_values), self._attention)
        values = torch.bmm(v, self._out_weight)
        values[0] += self._attention.out_proj.bias
        return _by_point(values, len(token_values)).flatten(1, 2)


def embed_points(encoder: PromptEncoder, points: Tensor) -> Tensor:
    """The stock encoder's sparse embedding (B, 2, C) of foreground points (B, 2), one a prompt.

    The second token says that there is no box. The encoder looks for it among the labels, for which
    a GPU is waited for.
    """
    pair = torch.stack([points + 0.5, torch.zeros_like(points)], dim=1)  # the middle of a pixel
    code = encoder.pe_layer.forward_with_coords(pair, encoder.input_image_size)[:, 0]
    code = code + cast(nn.Embedding, encoder.point_embeddings[1]).weight
    return torch.stack([code, encoder.not_a_point_embed.weight.expand_as(code)], dim=1)


def _embed_prompts(sam: Sam, points: Tensor) -> tuple[Tensor, Tensor]:
    labels = torch.ones((len(points), 1), dtype=torch.int, device=points.device)
    return sam.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)


def _passing(quality: Tensor, min_quality: float | None) -> Tensor:
    flat = quality.flatten()
    if min_quality is None:
        return torch.arange(len(flat), device=flat.device)
    return torch.nonzero(flat > min_quality)[:, 0]


def _by_head(x: Tensor, attention: Attention) -> Tensor:
    """(B, T, H * d) to (H, B * T, d)."""
    return x.unflatten(2, (attention.num_heads, -1)).permute(2, 0, 1, 3).flatten(1, 2)


def _scaled(x: Tensor, attention: Attention) -> Tensor:
    """By head, divided by sqrt(d): dividing 7 tokens is cheaper than dividing their logits."""
    heads = _by_head(x, attention)
    return heads / math.sqrt(heads.shape[-1])


def _by_point(x: Tensor, n_points: int) -> Tensor:
    """(H, B * T, X) to (B, H, T, X)."""
    return x.unflatten(1, (n_points, -1)).transpose(0, 1)


def _join_heads(x: Tensor, n_points: int) -> Tensor:
    """(H, B * T, d) to (B, T, H * d)."""
    return x.unflatten(1, (n_points, -1)).permute(1, 2, 0, 3).flatten(2)


def _weight_by_head(weight: Tensor, attention: Attention) -> Tensor:
    """(H * d, C) to (H, d, C)."""
    return weight.unflatten(0, (attention.num_heads, -1))


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)


def _conv_as_product(conv: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A 2x2 transposed convolution with stride 2: (b, n, C) to (b, 4 n, C'), (dy, dx) innermost."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * C', C)
    channels = conv.out_channels
    bias = None if conv.bias is None else conv.bias.repeat(4).to(x.dtype)
    y = F.linear(x, weight.to(x.dtype), bias)
    return y.unflatten(2, (-1, channels)).flatten(1, 2)
