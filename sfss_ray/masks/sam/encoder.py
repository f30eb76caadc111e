"""SAM's image encoder on a CPU: the same numbers without attention maps of the whole image.

A block that attends to the whole image makes a map of all positions by all positions for each head,
800 MB for a published SAM, and again for each term of the relative positions and for the softmax. That
is twice the work of its products: the maps fall out of every cache, and the kernel clears their pages
each time. Here a few rows of positions are taken from logits to values at a time, in two arrays that
are used again. Nothing else changes, and a matrix product's rows do not depend on how many there are
(as measured with MKL, where the embeddings are equal to the last bit).
"""

from typing import Any

import torch
from segment_anything.modeling.image_encoder import get_rel_pos
from torch import Tensor, nn

from sfss_ray.masks.sam.stock_modules import is_stock_encoder

_LOGITS_AT_ONCE = 1 << 21  # 8 MB in float32: more falls out of the caches, fewer cost more calls


def encode_image(encoder: nn.Module, image: Tensor) -> Tensor:
    """encoder(image) without gradients; one that is no stock encoder runs itself.

    Args:
        encoder: of a Sam, on a CPU.
        image: float32 (1, 3, S, S), as the model's preprocess() gives it.

    Returns:
        (1, C, h, w); in bfloat16 under autocast.
    """
    if not is_stock_encoder(encoder):
        return encoder(image)
    parts: Any = encoder  # its parts are typed as plain modules
    x = parts.patch_embed(image)
    if parts.pos_embed is not None:
        x = x + parts.pos_embed
    for block in parts.blocks:
        x = block(x) if block.window_size > 0 else _attend_to_all(block, x)
    return parts.neck(x.permute(0, 3, 1, 2))


def _attend_to_all(block: Any, x: Tensor) -> Tensor:
    """A block without windows, (B, H, W, C) to the same."""
    x = x + _attention(block.attn, block.norm1(x))
    return x + block.mlp(block.norm2(x))


def _attention(attention: Any, x: Tensor) -> Tensor:
    """Of all positions to all, (B, H, W, C) to the same."""
    batch, height, width, _ = x.shape
    n, heads = height * width, attention.num_heads
    qkv = attention.qkv(x).reshape(batch, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.reshape(3, batch * heads, n, -1).unbind(0)
    positions = _relative_positions(attention, q, (height, width))
    q, seen = q * attention.scale, torch.empty_like(v)
    rows = max(1, _LOGITS_AT_ONCE // (width * n))
    logits = q.new_empty((min(rows, height) * width, n))
    weights = torch.empty_like(logits)
    for head in range(len(q)):
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            part, size = slice(top * width, bottom * width), (bottom - top) * width
            torch.mm(q[head, part], k[head].T, out=logits[:size])
            grid = logits[:size].view(-1, width, height, width)
            for position in positions:
                grid += position[head, top:bottom]
            torch.softmax(logits[:size], dim=-1, out=weights[:size])
            torch.mm(weights[:size], v[head], out=seen[head, part])
    seen = seen.view(batch, heads, height, width, -1).permute(0, 2, 3, 1, 4)
    return attention.proj(seen.reshape(batch, height, width, -1))


def _relative_positions(attention: Any, q: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """What a query (y, x) adds for the row and for the column of a key (y', x').

    Args:
        attention: a head's tables of relative positions are in it.
        q: (heads, H * W, d), not scaled.
        size: (H, W).

    Returns:
        (heads, H, W, H, 1) and (heads, H, W, 1, W); none where the model does without.
    """
    if not attention.use_rel_pos:
        return []
    tables = attention.rel_pos_h, attention.rel_pos_w
    of_rows, of_columns = (get_rel_pos(n, n, t) for n, t in zip(size, tables, strict=True))
    q = q.unflatten(1, size)
    rows = torch.einsum("byxc,ykc->byxk", q, of_rows)
    columns = torch.einsum("byxc,xkc->byxk", q, of_columns)
    return [rows[..., None], columns[..., None, :]]
