"""SAM's image encoder on a CPU: the same numbers without attention maps of the whole image.

A block with global attention makes a map of all positions by all positions for each head, 800 MB for a
published SAM, plus one for each term of the relative positions and one for the softmax. This takes
twice as long as its products: the maps do not fit any cache, and the kernel clears their pages each
time. Here a few rows of positions at a time go from logits to values, in two arrays that are reused.
Nothing else changes. The rows of a matrix product do not depend on their number: with MKL the
embeddings were equal to the last bit.
"""

from typing import Any

import torch
from segment_anything.modeling.image_encoder import get_rel_pos
from torch import Tensor, nn

from sfss_ray.masks.sam.stock_modules import is_stock_encoder

_LOGITS_AT_ONCE = 1 << 21  # 8 MB in float32: more would not fit the caches, fewer cost more calls


def encode_image(encoder: nn.Module, image: Tensor) -> Tensor:
    """Return encoder(image) without gradients. An encoder that is not stock runs unchanged.

    Args:
        encoder: of a Sam, on a CPU.
        image: float32 (1, 3, S, S), as the model's preprocess() returns it.

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
        x = block(x) if block.window_size > 0 else _global_block(block, x)
    return parts.neck(x.permute(0, 3, 1, 2))


def _global_block(block: Any, x: Tensor) -> Tensor:
    """Run a block without windows: (B, H, W, C) to the same shape."""
    x = x + _global_attention(block.attn, block.norm1(x))
    return x + block.mlp(block.norm2(x))


def _global_attention(attention: Any, x: Tensor) -> Tensor:
    """Attend from all positions to all positions: (B, H, W, C) to the same shape."""
    batch, height, width, _ = x.shape
    n, heads = height * width, attention.num_heads
    qkv = attention.qkv(x).reshape(batch, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.reshape(3, batch * heads, n, -1).unbind(0)
    position_terms = _relative_position_terms(attention, q, (height, width))
    q, attended = q * attention.scale, torch.empty_like(v)
    # Both arrays are reused for every head and block of rows.
    rows = max(1, _LOGITS_AT_ONCE // (width * n))
    logits = q.new_empty((min(rows, height) * width, n))
    weights = torch.empty_like(logits)
    for head in range(len(q)):
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            part, size = slice(top * width, bottom * width), (bottom - top) * width
            torch.mm(q[head, part], k[head].T, out=logits[:size])
            grid = logits[:size].view(-1, width, height, width)
            for term in position_terms:
                grid += term[head, top:bottom]
            torch.softmax(logits[:size], dim=-1, out=weights[:size])
            torch.mm(weights[:size], v[head], out=attended[head, part])
    attended = attended.view(batch, heads, height, width, -1).permute(0, 2, 3, 1, 4)
    return attention.proj(attended.reshape(batch, height, width, -1))


def _relative_position_terms(attention: Any, q: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """Return what a query (y, x) adds to its logits for the row and the column of a key (y', x').

    Args:
        attention: holds the tables of relative positions.
        q: (heads, H * W, d), not scaled.
        size: (H, W).

    Returns:
        (heads, H, W, H, 1) and (heads, H, W, 1, W), or an empty list if the model does not use
        relative positions.
    """
    if not attention.use_rel_pos:
        return []
    tables = attention.rel_pos_h, attention.rel_pos_w
    row_table, column_table = (get_rel_pos(n, n, t) for n, t in zip(size, tables, strict=True))
    q = q.unflatten(1, size)
    rows = torch.einsum("byxc,ykc->byxk", q, row_table)
    columns = torch.einsum("byxc,xkc->byxk", q, column_table)
    return [rows[..., None], columns[..., None, :]]
