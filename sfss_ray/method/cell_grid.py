"""From pixels to the cells of the feature grid, wherever a network puts these.

Logits are scaled up by one of two rules (`Segmenter.align_corners`), and a cell is about where that puts
it: without corners aligned the cells are equal blocks of the image; with them the first and the last
cell lie on the outermost pixels, half a cell away from those blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cell_mask_ids(
    mask_ids: Tensor, grid: tuple[int, int], share: float, align_corners: bool = False
) -> Tensor:
    """Mask ids per grid cell: (B, H, W) -> (B, h, w); 0 where no id has `share` of the pixels.

    With share > .5 only the median pixel's id can have it, so a median and a count are exact.
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
    enough = (pixels == candidate[..., None]).float().mean(3) >= share
    return torch.where(enough, candidate, torch.zeros_like(candidate))


def cell_means(values: Tensor, grid: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Means over the pixels of each cell: (B, C, H, W) -> (B, C, h, w)."""
    return F.adaptive_avg_pool2d(_around_cells(values, grid) if align_corners else values, grid)


def _around_cells(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """(..., H, W) -> (..., h * s, w * t): the pixels around each cell's place, side by side.

    Beyond the image's edge its outermost pixel is taken again.
    """
    rows, columns = (_places(*sizes) for sizes in zip(values.shape[-2:], grid, strict=True))
    at = values.device
    return values[..., rows.to(at)[:, None], columns.to(at)]


def _places(pixels: int, cells: int) -> Tensor:
    """(cells * s,) pixel indices, s for each cell: as many as there are pixels from cell to cell."""
    step = (pixels - 1) / max(cells - 1, 1)
    number = max(1, round(step))
    offsets = (torch.arange(number) - (number - 1) / 2) * step / number
    places = torch.arange(cells)[:, None] * step + offsets
    return places.round().long().clamp(0, pixels - 1).flatten()
