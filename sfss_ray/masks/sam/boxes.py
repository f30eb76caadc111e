"""Boxes of the mask generator: crop layouts, crop edges and non-maximum suppression."""

from itertools import product
from math import ceil

import torch
from torch import Tensor
from torchvision.ops import batched_nms

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels

_EDGE_TOLERANCE = 20  # pixels between a box and an inner crop edge below which the mask is cut off


def crop_boxes(
    image_size: tuple[int, int], n_layers: int, overlap_ratio: float
) -> tuple[list[Box], list[int]]:
    """Return the crops of an image, as segment_anything's generate_crop_boxes lays them out.

    Args:
        image_size: (H, W) in pixels.
        n_layers: layers of crops; layer i has 2^i x 2^i crops.
        overlap_ratio: overlap of the crops in layer 1, as a fraction of the image's short side.

    Returns:
        Boxes and the layer of each box: the image itself (layer 0), then the crops of each layer
        column by column.
    """
    height, width = image_size
    boxes, layers = [(0, 0, width, height)], [0]
    for layer in range(1, n_layers + 1):
        n = 2**layer
        overlap = int(overlap_ratio * min(image_size) * (2 / n))
        w, h = (ceil((overlap * (n - 1) + side) / n) for side in (width, height))
        for i, j in product(range(n), range(n)):
            x0, y0 = (w - overlap) * i, (h - overlap) * j
            boxes.append((x0, y0, min(x0 + w, width), min(y0 + h, height)))
            layers.append(layer)
    return boxes, layers


def near_crop_edge(boxes: Tensor, crop_box: Box, image_size: tuple[int, int]) -> Tensor:
    """Return which boxes end near a crop edge that is not an edge of the image.

    Args:
        boxes: int64 (n, 4), x0 y0 x1 y1 in pixels of the crop.
        crop_box: the crop in the image.
        image_size: (H, W) in pixels.

    Returns:
        bool (n,).
    """
    in_image = boxes + torch.tensor([crop_box[0], crop_box[1], crop_box[0], crop_box[1]])
    image_edges = torch.tensor([0, 0, image_size[1], image_size[0]])
    near_crop = (in_image - torch.tensor(crop_box)).abs() <= _EDGE_TOLERANCE
    near_image = (in_image - image_edges).abs() <= _EDGE_TOLERANCE
    return (near_crop & ~near_image).any(dim=1)


def nms_indices(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices that survive non-maximum suppression by box IoU, best score first."""
    return batched_nms(boxes.float(), scores, torch.zeros(len(boxes)), iou_threshold)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Convert boxes (n, 4) from x0 y0 x1 y1 to x y w h."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
