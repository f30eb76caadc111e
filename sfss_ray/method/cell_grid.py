"""From pixels to the cells of the feature grid, for both corner rules of networks.

Logits are scaled up by one of two rules (`Segmenter.align_corners`), which decide where a cell lies.
Without aligned corners, cells are equal blocks of the image. With them, the first and the last cell lie
on the outermost pixels, half a cell away from those blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cell_mask_ids(
    mask_ids: Tensor, grid: tuple[int, int], share: float, align_corners: bool = False
) -> Tensor:
    """Return the mask id of each grid cell, 0 where no id has `share` of the cell's pixels.

    Args:
        mask_ids: (B, H, W) int64, 0 = no mask.
        grid: (h, w), cells.
        share: Above 0.5 and at most 1. Only the median pixel's id can then have it, so a median and a
            count are exact.
        align_corners: The network's corner rule.

    Returns:
        (B, h, w) int64.
    """
    height, width = grid
    if align_corners:
        mask_ids = _around_cells(mask_ids, grid)
    elif mask_ids.shape[1] % height or mask_ids.shape[2] % width:
        size = [g * max(1, round(n / g)) for g, n in zip(grid, mask_ids.shape[1:], strict=True)]
        mask_ids = F.interpolate(mask_ids[:, None].double(), size=size, mode="nearest")[:, 0].long()
    batch, full_height, full_width = mask_ids.shape
    blocks = mask_ids.view(batch, height, full_height // height, width, full_width // width)
    pixels = blocks.permute(0, 1, 3, 2, 4).flatten(3)
    candidate = pixels.median(dim=3).values
    accepted = (pixels == candidate[..., None]).float().mean(3) >= share
    return torch.where(accepted, candidate, torch.zeros_like(candidate))


def cell_means(values: Tensor, grid: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Return the mean over the pixels of each cell: (B, C, H, W) -> (B, C, h, w)."""
    return F.adaptive_avg_pool2d(_around_cells(values, grid) if align_corners else values, grid)


def _around_cells(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the pixels around each corner-aligned cell side by side: (..., H, W) -> (..., h*s, w*t).

    Beyond the image's edge its outermost pixel is repeated.
    """
    rows, columns = (_pixel_indices(*sizes) for sizes in zip(values.shape[-2:], grid, strict=True))
    device = values.device
    return values[..., rows.to(device)[:, None], columns.to(device)]


def _pixel_indices(pixels: int, cells: int) -> Tensor:
    """Return (cells * s,) pixel indices along one axis, s of them around each cell.

    s is the number of pixels from one cell to the next.
    """
    if cells == 1:  # the cell is the whole axis
        return torch.arange(pixels)
    step = (pixels - 1) / (cells - 1)
    per_cell = max(1, round(step))
    offsets = (torch.arange(per_cell) - (per_cell - 1) / 2) * step / per_cell
    positions = torch.arange(cells)[:, None] * step + offsets
    return positions.round().long().clamp(0, pixels - 1).flatten()
