"""Cells are where the network's own way of scaling up puts them."""

import pytest
import torch
from torch.nn import functional as F

from sfss_ray.method.cell_grid import cell_mask_ids, cell_means

SIZES = [((65, 65), (512, 512)), ((17, 33), (128, 256)), ((9, 9), (65, 65)), ((1, 4), (8, 32))]


def ramp(size: tuple[int, int]) -> torch.Tensor:
    """(1, 2, H, W): row and column of each pixel."""
    rows, columns = torch.meshgrid(*(torch.arange(n).float() for n in size), indexing="ij")
    return torch.stack([rows, columns])[None]


@pytest.mark.parametrize(("grid", "size"), SIZES)
@pytest.mark.parametrize("align_corners", [False, True])
def test_means_are_of_pixels_around_the_place_that_a_cell_is_scaled_up_to(
    grid, size, align_corners
):
    found = cell_means(ramp(size), grid, align_corners)
    assert found.shape == (1, 2, *grid)
    # A network that says where its cells are: scaled up by the same rule it must say where pixels are.
    again = F.interpolate(found, size=size, mode="bilinear", align_corners=align_corners)
    # at the edge the pixels around a corner-aligned cell lie half outside
    step = [(n - 1) / max(g - 1, 1) for g, n in zip(grid, size, strict=True)]
    inner = [slice(int(s) + 1, n - int(s) - 1) for s, n in zip(step, size, strict=True)]
    for axis in (0, 1):
        if grid[axis] > 1:
            error = (again - ramp(size))[0, axis][
                inner[0] if grid[0] > 1 else slice(None), inner[1]
            ]
            assert error.abs().max() <= 1.0, axis


def test_equal_blocks_would_be_far_off_for_a_network_with_aligned_corners():
    blocks = cell_means(ramp((512, 512)), (65, 65))[0, 1, 0]
    place = torch.arange(65) * 511 / 64
    assert (blocks - place).abs().max() > 3
    around = cell_means(ramp((512, 512)), (65, 65), align_corners=True)[0, 1, 0]
    assert (around - place)[1:-1].abs().max() <= 0.5


def test_a_mask_border_halfway_between_two_aligned_cells_parts_them():
    """Cells of 8 pixels at 0, 8, ..., 64: ids change at 12, halfway between cells 1 and 2."""
    ids = torch.ones(1, 65, 65, dtype=torch.long)
    ids[:, :, 12:] = 2
    found = cell_mask_ids(ids, (9, 9), 0.75, align_corners=True)
    assert found[0, 3].tolist() == [1] * 2 + [2] * 7
    # equal blocks of 65 / 9 pixels put the border into the middle of a cell, which then has no mask
    assert cell_mask_ids(ids, (9, 9), 0.75)[0, 3].tolist() == [1, 0] + [2] * 7
