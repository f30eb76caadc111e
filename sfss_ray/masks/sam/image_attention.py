"""The layers of SAM's mask decoder for many points of one image: the same numbers with less work.

Notation as in decoder.py, with H attention heads of d channels. The stock decoder projects all N
positions of every point's copy of the image, although only T tokens attend to them. Two
rearrangements avoid this.

Shared image. Before the first layer all points have the same keys. Their projections are computed
once per image, and the tokens of all points meet them in one product.

Absorbed projections. For a token's query q and the key projection W_k, b_k of one head

    q . (W_k (key + pe) + b_k) = (W_k^T q) . key + q . (W_k pe) + const over positions

and the softmax over positions is invariant to the constant. W_k pe is computed once per image. For the
values, since attention weights a_n sum to 1,

    sum_n a_n (W_v key_n + b_v) = W_v (sum_n a_n key_n) + b_v.

The B * N positions are therefore multiplied with H * T columns instead of the internal dimension,
twice, and no projected image is written. From image to tokens the query projection is absorbed in the
same way; its bias stays, as a part of W_q pe + b_q. The value and output projections of the few tokens
are multiplied before the N positions use them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor
from torch.nn import functional as F


class Layer:
    """One TwoWayAttentionBlock with rearranged cross attentions."""

    def __init__(
        self,
        block: TwoWayAttentionBlock,
        attention: Callable[[Tensor, Any], Tensor],
        update: Callable[[Tensor, Tensor, Any], Any],
    ) -> None:
        self._block, self._attention, self._update = block, attention, update

    def run(self, queries: Tensor, tokens: Tensor, keys: Any) -> tuple[Tensor, Any]:
        """Return new queries (B, T, C) and keys (B, N, C).

        Args:
            queries: (B, T, C), the state of the tokens.
            tokens: (B, T, C), the tokens before the first layer, added as their positional encoding.
            keys: (B, N, C), the image positions, or as factored_keys.py holds them. Later layers
                overwrite them.
        """
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


class SharedImageAttention:
    """Tokens attend to keys (N, C) shared by all points, whose projections are computed once."""

    def __init__(self, attention: Attention, keys: Tensor, pe: Tensor, dtype: torch.dtype) -> None:
        self._attention = attention
        self._k = _by_head(attention.k_proj(keys + pe)[None], attention).mT.contiguous().to(dtype)
        self._v = _by_head(attention.v_proj(keys)[None], attention).to(dtype)

    def __call__(self, queries: Tensor, keys: Tensor) -> Tensor:
        q = _scaled(self._attention.q_proj(queries), self._attention).to(self._k.dtype)
        weights = torch.softmax(torch.bmm(q, self._k), dim=-1)
        values = torch.bmm(weights, self._v).float()
        return self._attention.out_proj(_join_heads(values, len(queries)))


class ImageAttention:
    """Tokens attend to keys (B, N, C) of their point, with absorbed key and value projections."""

    def __init__(self, attention: Attention, pe: Tensor, dtype: torch.dtype) -> None:
        self._attention = attention
        # Without b_k, which adds the same to all positions: the softmax is invariant to it.
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
        mean_keys = torch.bmm(weights, keys).float().unflatten(1, (n_heads, -1))
        mean_keys = mean_keys.transpose(0, 1).flatten(1, 2)
        values = torch.baddbmm(self._v_bias, mean_keys, self._v_weight.mT)
        return self._attention.out_proj(_join_heads(values, n_points))


class ImageUpdate:
    """Image positions attend to the tokens; a call returns the new keys (B, N, C).

    Args:
        block: the layer, for its image-to-token attention and its norm.
        image: (N, C), the part of "key + positional encoding" that all points share: the whole sum
            with `same_keys`, else the encoding alone.
        same_keys: whether all points have the same keys, as in the first layer.
        dtype: of the image side.
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
            key_logits = torch.bmm(absorbed.to(keys.dtype), keys.mT)
            logits = key_logits.unflatten(1, (n_heads, -1)).add_(logits)
        weights = torch.softmax(logits, dim=2).flatten(1, 2)
        values = self._projected_values(token_values).to(keys.dtype)
        # Keys of a single point are overwritten: nothing else reads them, and a copy would take a
        # fifth of the time of the product.
        add = torch.baddbmm if self._same_keys else Tensor.baddbmm_
        updated = add(keys, weights.mT, values)
        return layer_norm(updated, self._norm.weight, self._norm.bias, self._norm.eps)

    def _projected_values(self, token_values: Tensor) -> Tensor:
        """Return W_out W_v token for each head, (B, H * T, C).

        The output's bias is added to one head. The weights of a head sum to 1 over the tokens, so
        each position gets the bias exactly once.
        """
        v = _by_head(self._attention.v_proj(token_values), self._attention)
        values = torch.bmm(v, self._out_weight)
        values[0] += self._attention.out_proj.bias
        return _by_point(values, len(token_values)).flatten(1, 2)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension, with weight and bias in the dtype of x."""
    return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)


def _by_head(x: Tensor, attention: Attention) -> Tensor:
    """Reshape (B, T, H * d) to (H, B * T, d)."""
    return x.unflatten(2, (attention.num_heads, -1)).permute(2, 0, 1, 3).flatten(1, 2)


def _scaled(x: Tensor, attention: Attention) -> Tensor:
    """Split by head and divide by sqrt(d): dividing 7 tokens is cheaper than dividing their logits."""
    heads = _by_head(x, attention)
    return heads / math.sqrt(heads.shape[-1])


def _by_point(x: Tensor, n_points: int) -> Tensor:
    """Reshape (H, B * T, X) to (B, H, T, X)."""
    return x.unflatten(1, (n_points, -1)).transpose(0, 1)


def _join_heads(x: Tensor, n_points: int) -> Tensor:
    """Reshape (H, B * T, d) to (B, T, H * d)."""
    return x.unflatten(1, (n_points, -1)).permute(1, 2, 0, 3).flatten(2)


def _weight_by_head(weight: Tensor, attention: Attention) -> Tensor:
    """Reshape (H * d, C) to (H, d, C)."""
    return weight.unflatten(0, (attention.num_heads, -1))
