"""The mask decoder of a CPU for wide networks: the image positions stay factored (factored_keys.py).

The first transposed convolution is a linear layer of the keys, so it is computed from the factors too.
The rest of the upscaling is not linear. It runs on a few positions at a time, whose pixels stay in the
processor's caches from the first product to the last.
"""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sfss_ray.masks.sam.decoder import FineFeatures, SharedImageDecoder
from sfss_ray.masks.sam.factored_keys import (
    FactoredAttention,
    FactoredKeys,
    FactoredUpdate,
    KeyBasis,
)
from sfss_ray.masks.sam.family_parts import FamilyParts
from sfss_ray.masks.sam.image_attention import Layer, layer_norm

_POSITIONS_AT_ONCE = 512
_TOKENS_OF_A_POINT = 2  # the point, and the token which says that there is no box


def image_decoder(
    sam: Sam | FamilyParts,
    embedding: Tensor,
    dtype: torch.dtype,
    input_size: tuple[int, int] | None = None,
    fine: FineFeatures | None = None,
) -> SharedImageDecoder:
    """Return the faster decoder for a network, a device and a dtype; SharedImageDecoder's arguments."""
    on_cpu = embedding.device.type == "cpu" and dtype == torch.float32
    cls = FactoredDecoder if on_cpu and _is_wide(sam.mask_decoder) else SharedImageDecoder
    return cls(sam, embedding, dtype, input_size, fine)


def _is_wide(decoder: Any) -> bool:
    """Return whether keys have at least twice as many channels as factors."""
    layers = decoder.transformer.layers
    n_tokens = 1 + decoder.num_mask_tokens + hasattr(decoder, "obj_score_token")
    n_heads = layers[0].cross_attn_image_to_token.num_heads
    n_factors = len(layers) * n_heads * (n_tokens + _TOKENS_OF_A_POINT)
    return decoder.iou_token.weight.shape[1] >= 2 * n_factors


class FactoredDecoder(SharedImageDecoder):
    """SharedImageDecoder with factored keys, for float32 on a CPU."""

    def _build_layers(self, keys: Tensor, pe: Tensor) -> None:
        decoder, pe = self._decoder, pe.contiguous()
        basis = KeyBasis(keys, (), keys.new_zeros(keys.shape[1]))
        self._layers = []
        for block in decoder.transformer.layers:
            attention = FactoredAttention(block.cross_attn_token_to_image, basis, pe)
            update = FactoredUpdate(block, basis, pe)
            self._layers.append(Layer(block, attention, update))
            basis = update.basis
        self._last_attention = FactoredAttention(
            decoder.transformer.final_attn_token_to_image, basis, pe
        )
        first, _ = self._products
        basis = basis.project(first.weight)
        self._upscaled_image, self._bases = self._visible(basis.image.T).T.contiguous(), basis.bases
        constant = basis.constant + first.constant
        self._constant = constant.expand(len(self._upscaled_image), -1)

    def _first_keys(self, n_points: int) -> list[FactoredKeys]:
        return [FactoredKeys(self._keys.new_zeros((0, self._keys.shape[1])))] * n_points

    def _visible(self, x: Tensor) -> Tensor:
        """Select the positions of x (m, N) from which pixels of the image are made."""
        if self._grid == self._unpadded_grid:
            return x
        h, w = self._unpadded_grid
        return x.unflatten(1, self._grid)[:, :h, :w].flatten(1)

    def _masks(self, mask_tokens: Tensor, keys: list[FactoredKeys], passed: Tensor) -> Tensor:
        point, mask = passed // mask_tokens.shape[1], passed % mask_tokens.shape[1]
        rasters = [
            self._point_masks(mask_tokens[k], keys[k], mask[point == k].tolist())
            for k in torch.unique(point).tolist()
        ]
        return torch.cat(rasters)

    def _point_masks(self, mask_tokens: Tensor, keys: FactoredKeys, outputs: list[int]) -> Tensor:
        """Return logits (k, n * 16) of some of the multimask outputs of a point."""
        networks = self._decoder.output_hypernetworks_mlps[1:]
        filters = torch.cat([networks[k](mask_tokens[k : k + 1]) for k in outputs])
        assert keys.scale is not None  # only before the first layer
        weights, scale = self._visible(keys.weights), self._visible(keys.scale[None])[0]
        of_tokens = keys.token_part(self._bases)
        rasters = filters.new_empty((len(filters), 16 * len(scale)))
        for start in range(0, len(scale), _POSITIONS_AT_ONCE):
            part = slice(start, min(start + _POSITIONS_AT_ONCE, len(scale)))
            x = scale[part, None] * self._upscaled_image[part]
            x.addmm_(weights[:, part].T, of_tokens).add_(self._constant[part])
            torch.mm(filters, self._fine_pixels(x, part).T, out=rasters[:, _times(part, 16)])
        return rasters

    def _fine_pixels(self, x: Tensor, positions: slice) -> Tensor:
        """Return the upscaled image (16 n, C / 8) for the first product (n, C) at some positions."""
        _, norm, act1, _, act2 = self._decoder.output_upscaling
        _, second = self._products
        x = x.view(-1, norm.weight.shape[0])
        x = act1(layer_norm(x, norm.weight, norm.bias, norm.eps))
        return act2(second(x[None], _times(positions, 4)))[0]


def _times(part: slice, factor: int) -> slice:
    return slice(factor * part.start, factor * part.stop)
