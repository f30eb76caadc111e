"""Grid cells lie where the network's own way of scaling up puts them."""

import numpy as np
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
def test_means_are_of_the_pixels_around_the_position_of_a_cell(grid, size, align_corners):
    means = cell_means(ramp(size), grid, align_corners)
    assert means.shape == (1, 2, *grid)
    # A network that outputs the position of its cells, scaled up by the same rule, must output the
    # position of the pixels.
    upsampled = F.interpolate(means, size=size, mode="bilinear", align_corners=align_corners)
    # at the edge the pixels around a corner-aligned cell lie half outside
    step = [(n - 1) / max(g - 1, 1) for g, n in zip(grid, size, strict=True)]
    inner = [slice(int(s) + 1, n - int(s) - 1) for s, n in zip(step, size, strict=True)]
    for axis in (0, 1):
        if grid[axis] > 1:
            error = (upsampled - ramp(size))[0, axis][
                inner[0] if grid[0] > 1 else slice(None), inner[1]
            ]
            assert error.abs().max() <= 1.0, axis


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_single_cell_is_the_whole_image(align_corners):
    values = torch.arange(24.0).view(1, 1, 4, 6)
    assert cell_means(values, (1, 1), align_corners).item() == values.mean()
    rows = cell_means(values, (1, 6), align_corners)
    assert torch.equal(rows, values.mean(2, keepdim=True))


def test_equal_blocks_would_be_far_off_for_a_network_with_aligned_corners():
    blocks = cell_means(ramp((512, 512)), (65, 65))[0, 1, 0]
    position = torch.arange(65) * 511 / 64
    assert (blocks - position).abs().max() > 3
    around = cell_means(ramp((512, 512)), (65, 65), align_corners=True)[0, 1, 0]
    assert (around - position)[1:-1].abs().max() <= 0.5


def test_a_mask_border_halfway_between_two_aligned_cells_parts_them():
    """Cells of 8 pixels at 0, 8, ..., 64: ids change at 12, halfway between cells 1 and 2."""
    ids = torch.ones(1, 65, 65, dtype=torch.long)
    ids[:, :, 12:] = 2
    cells = cell_mask_ids(ids, (9, 9), 0.75, align_corners=True)
    assert cells[0, 3].tolist() == [1] * 2 + [2] * 7
    # equal blocks of 65 / 9 pixels put the border into the middle of a cell, which then has no mask
    assert cell_mask_ids(ids, (9, 9), 0.75)[0, 3].tolist() == [1, 0] + [2] * 7


def cells_by_counting(ids: np.ndarray, grid: tuple[int, int], share: float) -> np.ndarray:
    """Count every id of every block; sizes that do not divide are sampled to ones that do."""
    steps = [max(1, round(n / g)) for n, g in zip(ids.shape, grid, strict=True)]
    rows, columns = (
        (np.arange(g * s) * n) // (g * s) for g, s, n in zip(grid, steps, ids.shape, strict=True)
    )
    ids = ids[rows[:, None], columns]
    cells = np.zeros(grid, np.int64)
    for i, j in np.ndindex(*grid):
        block = ids[i * steps[0] : (i + 1) * steps[0], j * steps[1] : (j + 1) * steps[1]]
        for mask_id, count in zip(*np.unique(block, return_counts=True), strict=True):
            if count >= share * block.size:
                cells[i, j] = mask_id
    return cells


@pytest.mark.parametrize("share", [0.75, 0.51, 1.0])
@pytest.mark.parametrize(
    ("size", "grid"),
    [((32, 48), (8, 12)), ((33, 47), (8, 12)), ((65, 65), (17, 17)), ((4, 6), (8, 6))],
)
def test_cells_take_the_id_that_has_enough_pixels(size, grid, share):
    rng = np.random.default_rng(0)
    mask_ids = np.array([0, 3, 4, 70_000])
    coarse = rng.choice(mask_ids, (2, size[0] // 4 + 1, size[1] // 4 + 1))
    ids = coarse.repeat(4, 1).repeat(4, 2)[:, : size[0], : size[1]].copy()
    stray = rng.random(ids.shape) < 0.12
    ids[stray] = rng.choice(mask_ids, stray.sum())
    cells = cell_mask_ids(torch.from_numpy(ids), grid, share).numpy()
    for b in range(2):
        np.testing.assert_array_equal(cells[b], cells_by_counting(ids[b], grid, share))
    assert (cells > 0).any()


def test_exactly_three_quarters_are_enough():
    ids = torch.zeros(1, 4, 8, dtype=torch.long)
    ids[0, :3, :4] = 9  # 12 of 16 pixels
    ids[0, :3, 4:] = 7
    ids[0, 0, 4] = 0  # 11 of 16
    assert cell_mask_ids(ids, (1, 2), 0.75).tolist() == [[[9, 0]]]


def test_sizes_that_do_not_divide_keep_masks_in_place():
    ids = torch.ones(1, 67, 45, dtype=torch.long)
    ids[0, 30:, 20:] = 2
    cells = cell_mask_ids(ids, (17, 11), 0.75)[0]
    for i, j in np.ndindex(17, 11):
        rows = slice(max(0, int(i * 67 / 17) - 1), int((i + 1) * 67 / 17) + 2)
        columns = slice(max(0, int(j * 45 / 11) - 1), int((j + 1) * 45 / 11) + 2)
        around = ids[0, rows, columns].unique()
        if len(around) == 1:
            assert cells[i, j] == around[0]
