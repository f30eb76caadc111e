"""SAM's image positions as products of few columns: the layers of the decoder without writing them.

Notation as in image_attention.py. All points start from the same keys K (N, C). A layer adds to them
the values V (H * T, C) of the tokens, weighted by a softmax W (N, H * T), and normalises each row:

    keys_1 = (K + W_1 V_1 - mean) / deviation * weight + bias.

Subtracting the mean of a row and multiplying with the norm's weight are products with matrices that all
points share. Only the deviation belongs to a point. Hence, after every layer,

    keys = a * K M + U G + d

with a factor a for each row, a matrix M and a vector d that all points share, a matrix U (N, R) of the
scaled weights so far, and G (R, C) of the values so far. R grows by H * T = 64 with each layer. A linear
layer P of C inputs needs keys P = a * (K M P) + U (G P) + d P. K M P is computed once per image, so the
N positions are multiplied with R columns instead of C. The variance of a row follows from products of
the same size: with K M and G centred,

    |a * K M + U G|^2 = a^2 |K M|^2 + U . (2 a * K M G^T + U G G^T).

The values of a head are W_out v with d_head channels, so K M G^T needs d_head columns for each head. A
constant that is added to all rows, a bias or d, is shared out to the heads as one more channel of v that
is 1, because the weights of each head sum to 1.

With C = 256 and two layers this takes 60 % of the multiplications of image_attention.py. With C = 64 it
saves nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Bases = tuple[Tensor, ...]
"""For each layer so far (H, d_head + 1, C): what a channel of its values adds to the keys."""


@dataclass(frozen=True)
class FactoredKeys:
    """The keys of one point.

    Attributes:
        weights: (R, N), U transposed.
        values: of each layer so far (H, T, d_head + 1), the last channel is 1.
        scale: (N,), a of the module's docstring; None before the first layer, where it is 1.
    """

    weights: Tensor
    values: tuple[Tensor, ...] = ()
    scale: Tensor | None = None

    def scaled(self, x: Tensor) -> Tensor:
        """Multiply the columns of x (..., N) with the scale, in place."""
        return x if self.scale is None else x.mul_(self.scale)

    def token_part(self, bases: Bases) -> Tensor:
        """Return G (R, m) for bases (H, d_head + 1, m) of each layer so far."""
        pairs = zip(self.values, bases, strict=True)
        return torch.cat([torch.bmm(v, basis).flatten(0, 1) for v, basis in pairs])


@dataclass(frozen=True)
class KeyBasis:
    """What the keys of all points share between two layers.

    Attributes:
        image: (N, C), K M.
        bases: of each layer so far.
        constant: (C,), d.
    """

    image: Tensor
    bases: Bases
    constant: Tensor

    def project(self, weight: Tensor) -> KeyBasis:
        """Return the basis of keys @ weight.T, for a weight (m, C)."""
        bases = tuple(basis @ weight.T for basis in self.bases)
        return KeyBasis(self.image @ weight.T, bases, self.constant @ weight.T)


class FactoredAttention:
    """The tokens of points attend to their keys.

    Args:
        attention: from tokens to the image.
        basis: of the keys.
        pe: (N, C), added to the keys before the key projection.
    """

    def __init__(self, attention: Any, basis: KeyBasis, pe: Tensor) -> None:
        self._attention, n_heads = attention, attention.num_heads
        # A constant adds the same to all positions, and the softmax is invariant to it.
        k_of_pe = pe @ attention.k_proj.weight.T
        self._k = _KeyProducts(basis.project(attention.k_proj.weight), k_of_pe, n_heads)
        self._v = _KeyMeans(basis.project(attention.v_proj.weight), attention.v_proj.bias, n_heads)

    def __call__(self, queries: Tensor, keys: list[FactoredKeys]) -> Tensor:
        """Return (B, T, C) for queries (B, T, C) and the keys of B points."""
        heads = _scaled_heads(self._attention.q_proj(queries), self._attention.num_heads)
        values = [
            self._v(torch.softmax(self._k(q, k), dim=-1), k)
            for q, k in zip(heads, keys, strict=True)
        ]
        return self._attention.out_proj(torch.stack(values).transpose(1, 2).flatten(2))


class FactoredUpdate:
    """Image positions attend to the tokens; a call returns the new keys.

    Args:
        block: the layer, for its image-to-token attention and its norm.
        basis: of the keys before the layer.
        pe: (N, C), added to the keys before the query projection.

    Attributes:
        basis: of the keys after the layer.
    """

    def __init__(self, block: Any, basis: KeyBasis, pe: Tensor) -> None:
        attention, norm = block.cross_attn_image_to_token, block.norm4
        self._attention, self._eps, n_heads = attention, norm.eps, attention.num_heads
        projected = basis.project(attention.q_proj.weight)
        shared = pe @ attention.q_proj.weight.T + attention.q_proj.bias + projected.constant
        self._q = _KeyProducts(projected, shared, n_heads)
        out = attention.out_proj.weight.T.unflatten(0, (n_heads, -1))
        constant = (attention.out_proj.bias + basis.constant) / n_heads
        out = torch.cat([out, constant.expand(n_heads, 1, -1)], dim=1)
        image, *bases = (x - x.mean(-1, keepdim=True) for x in (basis.image, *basis.bases, out))
        self._bases, self._channels = tuple(bases), image.shape[1]
        self._squares = image.square().sum(1)
        self._crossed = [2 * (b @ image.T) for b in bases]
        scaled_bases = tuple(b * norm.weight for b in bases)
        self.basis = KeyBasis(image * norm.weight, scaled_bases, norm.bias)

    def __call__(
        self, token_keys: Tensor, token_values: Tensor, keys: list[FactoredKeys]
    ) -> list[FactoredKeys]:
        n_heads = self._attention.num_heads
        k = _scaled_heads(self._attention.k_proj(token_keys), n_heads)
        v = self._attention.v_proj(token_values).unflatten(2, (n_heads, -1)).transpose(1, 2)
        v = torch.cat([v, v.new_ones((*v.shape[:-1], 1))], dim=-1)
        return [self._update(*x) for x in zip(k, v, keys, strict=True)]

    def _update(self, k: Tensor, v: Tensor, keys: FactoredKeys) -> FactoredKeys:
        """Return the new keys of a point, for its tokens' keys (H, T, d) and values (H, T, d + 1)."""
        logits = self._q(k, keys)
        n_rows = len(keys.weights)
        weights = logits.new_empty((n_rows + len(k) * k.shape[1], logits.shape[2]))
        weights[:n_rows] = keys.weights
        torch.softmax(logits, dim=1, out=weights[n_rows:].view_as(logits))
        updated = FactoredKeys(weights, (*keys.values, v), keys.scale)
        inverse = self._inverse_deviations(updated)
        scale = inverse if keys.scale is None else inverse * keys.scale
        return FactoredKeys(weights.mul_(inverse), updated.values, scale)

    def _inverse_deviations(self, keys: FactoredKeys) -> Tensor:
        """Return (N,), the inverse standard deviation of each row of the keys before the norm."""
        products = torch.empty_like(keys.weights)
        parts = products.split([v.shape[0] * v.shape[1] for v in keys.values])
        for part, v, crossed in zip(parts, keys.values, self._crossed, strict=True):
            torch.bmm(v, crossed, out=part.view(*v.shape[:2], -1))
        values = keys.token_part(self._bases)
        products = keys.scaled(products).addmm_(values @ values.T, keys.weights)
        squares = products.mul_(keys.weights).sum(0)
        image = self._squares if keys.scale is None else self._squares * keys.scale.square()
        return (squares.add_(image) / self._channels + self._eps).rsqrt_()


class _KeyProducts:
    """Products of vectors of each head with a projection of the keys.

    Args:
        basis: of the projected keys (N, H * d), whose constant is left out.
        shared: (N, H * d), added to the projected keys.
        n_heads: H.
    """

    def __init__(self, basis: KeyBasis, shared: Tensor, n_heads: int) -> None:
        self._bases = basis.bases
        # Before the first layer the keys of all points are the same.
        image = basis.image if basis.bases else basis.image + shared
        self._image, self._shared = (
            _split_heads(x, n_heads).mT.contiguous() for x in (image, shared)
        )

    def __call__(self, x: Tensor, keys: FactoredKeys) -> Tensor:
        """Return (H, T, N) for vectors x (H, T, d)."""
        products = torch.bmm(x, self._image)
        if not keys.values:
            return products
        keys.scaled(products)
        of_tokens = _split_heads(keys.token_part(self._bases), len(x))
        absorbed = torch.bmm(x, of_tokens.mT).flatten(0, 1)
        products.view(-1, products.shape[2]).addmm_(absorbed, keys.weights)
        return products.baddbmm_(x, self._shared)


class _KeyMeans:
    """Weighted means of a projection of the keys, for each head.

    Args:
        basis: of the projected keys (N, H * d).
        bias: (H * d,), added to the projected keys.
        n_heads: H.
    """

    def __init__(self, basis: KeyBasis, bias: Tensor, n_heads: int) -> None:
        self._bases = basis.bases
        self._image = _split_heads(basis.image, n_heads).contiguous()
        self._bias = _split_heads((basis.constant + bias)[None], n_heads)

    def __call__(self, weights: Tensor, keys: FactoredKeys) -> Tensor:
        """Return (H, T, d) for weights (H, T, N) whose rows sum to 1, which are overwritten."""
        if not keys.values:
            return torch.baddbmm(self._bias, weights, self._image)
        of_layers = (weights.flatten(0, 1) @ keys.weights.T).unflatten(0, weights.shape[:2])
        means = torch.baddbmm(self._bias, keys.scaled(weights), self._image)
        of_tokens = _split_heads(keys.token_part(self._bases), len(weights))
        return means.baddbmm_(of_layers, of_tokens)


def _split_heads(x: Tensor, n_heads: int) -> Tensor:
    """Reshape (N, H * d) to (H, N, d)."""
    return x.unflatten(1, (n_heads, -1)).transpose(0, 1)


def _scaled_heads(x: Tensor, n_heads: int) -> Tensor:
    """Reshape (B, T, H * d) to (B, H, T, d) and divide by sqrt(d)."""
    heads = x.unflatten(2, (n_heads, -1)).transpose(1, 2)
    return (heads / math.sqrt(heads.shape[-1])).contiguous()
