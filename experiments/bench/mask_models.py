"""Networks and decoder outputs for the mask benchmarks, which need no trained large SAM.

A large SAM with random weights runs the whole code at its real cost, but its masks are noise. Benchmarks
of time and memory therefore replace the low-resolution logits by those of drawn objects, right after the
decoder. The decoder still does all of its work, and both generators get the same masks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from segment_anything import build_sam_vit_b, build_sam_vit_h
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.masks.sam.decoder import DecodedPoints, SharedImageDecoder
from sfss_ray.masks.sam.reference_decoder import ReferenceDecoder

BUILDERS = {"vit_b": build_sam_vit_b, "vit_h": build_sam_vit_h}
OBJECTS = 120
PASSING = 0.4  # share of the candidates whose predicted IoU is above the default threshold
_SLOPE = 10.0  # logits per low-resolution pixel at a border
_WITH_SPECK = 0.2  # share of the objects with a small island elsewhere, as in real masks


def random_sam(kind: str, device: str = "cpu", seed: int = 5, gain: float = 1.6) -> Sam:
    """Return a SAM of a published size with random weights whose masks have parts and borders.

    With the default weights of torch, all points give nearly the same mask of single pixels. Here the
    decoder weights keep the variance (times gain), and the four pixels that an upscaling convolution
    makes of one are nearly equal.
    """
    torch.manual_seed(seed)
    with torch.device(device):  # drawing the weights of a ViT-H on a CPU takes many seconds
        sam = BUILDERS[kind]()
    decoder: Any = sam.mask_decoder
    generator = torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        if parameter.dim() > 1:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(gain / math.sqrt(parameter.shape[1]) * noise)
    for convolution in (decoder.output_upscaling[0], decoder.output_upscaling[3]):
        weight = convolution.weight.data
        weight.copy_(2 * weight.mean((2, 3), keepdim=True) + 0.03 * weight)
    for network in decoder.output_hypernetworks_mlps:
        network.layers[-1].weight.data.mul_(16)
    return sam.eval().requires_grad_(False).to(device)


@lru_cache(maxsize=1)
def calibrated_sam(kind: str, device: str) -> Sam:
    """Return a random_sam of which a share of PASSING candidates pass. The last one is cached."""
    sam = random_sam(kind, device)
    calibrate_quality(sam)
    return sam


@torch.no_grad()
def calibrate_quality(sam: Sam, passing: float = PASSING, threshold: float = 0.88) -> None:
    """Shift and scale the last layer of the IoU head: `passing` of random points' masks pass.

    The embedding is noise, as the encoder's last norm makes it: no image is needed.
    """
    side = sam.prompt_encoder.image_embedding_size[0]
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn((1, sam.prompt_encoder.embed_dim, side, side), generator=generator)
    points = sam.image_encoder.img_size * torch.rand((48, 2), generator=generator)
    device = sam.device
    decoder = SharedImageDecoder(sam, embedding.to(device), torch.float32)
    chunks = points.to(device).split(8)
    quality = torch.cat([decoder.decode(chunk, 1e9).predicted_iou for chunk in chunks])
    scale = 0.1 / quality.std(dim=0)
    at = quality.quantile(1 - passing, dim=0)
    head: Any = sam.mask_decoder.iou_prediction_head.layers[-1]
    head.weight.data[1:] *= scale[:, None]
    head.bias.data[1:] = (head.bias.data[1:] - at) * scale + threshold


@dataclass
class DrawnMasks:
    """Low-resolution logits for the points of an image, returned in the order of the points.

    Attributes:
        objects: float32 (n, side, side) logits.
        of_point: int64 (points, 3), the objects of the three masks of a point.
        quality: float32 (points, 3), a predicted IoU for each.
        returned: number of points of the current image that were returned.
    """

    objects: Tensor
    of_point: Tensor
    quality: Tensor
    returned: int = 0

    def next(self, n_points: int) -> tuple[Tensor, Tensor]:
        """Return objects (n, 3) and qualities (n, 3) of the next points."""
        part = slice(self.returned, self.returned + n_points)
        self.returned = part.stop % len(self.of_point)
        return self.of_point[part], self.quality[part]


def draw_masks(
    unpadded_size: tuple[int, int],
    points_per_side: int,
    side: int = 256,
    device: str = "cpu",
    seed: int = 0,
) -> DrawnMasks:
    """Draw objects in the unpadded part of the input, `unpadded_size` (h, w) low-resolution pixels.

    Centres are uniform, radii log-uniform from 3 pixels to half of the short side, and outlines are
    ellipses with waves. A point has the smallest, middle and largest object under it, or the nearest
    one. A random share of PASSING qualities is above .88.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    objects = np.stack([_draw_object(rng, y, x, unpadded_size) for _ in range(OBJECTS)])
    grid = (np.arange(points_per_side) + 0.5) / points_per_side
    rows, columns = np.meshgrid(grid * unpadded_size[0], grid * unpadded_size[1], indexing="ij")
    at = objects[:, rows.ravel().astype(int), columns.ravel().astype(int)].T
    areas = (objects > 0).sum(axis=(1, 2))
    quality = 0.88 + 0.1 * (PASSING - rng.random((len(at), 3)))
    return DrawnMasks(
        torch.from_numpy(objects).to(device),
        torch.from_numpy(np.stack([_shown(value, areas) for value in at])).to(device),
        torch.from_numpy(quality.astype(np.float32)).to(device),
    )


def _draw_object(
    rng: np.random.Generator, y: np.ndarray, x: np.ndarray, unpadded_size: tuple[int, int]
) -> np.ndarray:
    centre = rng.uniform(0, unpadded_size[0]), rng.uniform(0, unpadded_size[1])
    radius = np.exp(rng.uniform(np.log(3), np.log(min(unpadded_size) / 2)))
    flat, phase = rng.uniform(0.4, 1), rng.uniform(0, 6.3)
    dy, dx = (y - centre[0]) / flat, x - centre[1]
    outline = radius * (1 + 0.15 * np.sin(5 * np.arctan2(dy, dx) + phase))
    logits = _SLOPE * (outline - np.hypot(dy, dx))
    if rng.random() < _WITH_SPECK:
        speck = np.hypot(y - rng.uniform(0, unpadded_size[0]), x - rng.uniform(0, unpadded_size[1]))
        logits = np.maximum(logits, _SLOPE * (1.5 - speck))
    return np.clip(logits, -15, 10).astype(np.float32)


def _shown(logits_at_point: np.ndarray, areas: np.ndarray) -> np.ndarray:
    under = np.flatnonzero(logits_at_point > 0)
    if not len(under):
        return np.repeat(np.argmax(logits_at_point), 3)
    under = under[np.argsort(areas[under])]
    return under[[0, len(under) // 2, -1]]


class DrawnDecoder(nn.Module):
    """Replaces the mask_decoder of the stock generator and returns drawn logits.

    Args:
        drawn: the masks.
        real: a decoder that runs first and supplies the qualities. None costs nothing and returns
            the drawn qualities.
    """

    def __init__(self, drawn: DrawnMasks, real: nn.Module | None) -> None:
        super().__init__()
        self.drawn, self.real = drawn, real

    def forward(self, sparse_prompt_embeddings: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        object_ids, quality = self.drawn.next(len(sparse_prompt_embeddings))
        if self.real is not None:
            _, quality = self.real(sparse_prompt_embeddings=sparse_prompt_embeddings, **inputs)
        return self.drawn.objects[object_ids], quality


def drawn_shared_decoder(
    drawn: DrawnMasks, base: type[SharedImageDecoder] = SharedImageDecoder
) -> type[SharedImageDecoder]:
    """Return a SharedImageDecoder that does its full work and returns drawn logits."""

    class Decoder(base):
        def decode(self, points: Tensor, pred_iou_thresh: float | None) -> DecodedPoints:
            decoded = super().decode(points, pred_iou_thresh)
            object_ids, _ = drawn.next(len(points))
            height, width = decoded.logits.shape[1:]
            logits = drawn.objects[object_ids.flatten()[decoded.passed], :height, :width]
            return replace(decoded, logits=logits)

    return Decoder


def drawn_stock_order(
    drawn: DrawnMasks,
    unpadded_size: tuple[float, float],
    base: type[ReferenceDecoder] = ReferenceDecoder,
) -> type[ReferenceDecoder]:
    """Return a ReferenceDecoder that does its full work and returns drawn logits.

    `unpadded_size` is the unpadded part (h, w) of the model input in pixels.
    """
    side = math.isqrt(len(drawn.of_point))
    scale = torch.tensor([side / unpadded_size[1], side / unpadded_size[0]])

    class Decoder(base):
        def logits(self, points: Tensor, outputs: Tensor) -> Tensor:
            super().logits(points, outputs)
            column, row = (points * scale.to(points)).long().unbind(1)
            return drawn.objects[drawn.of_point[row * side + column, outputs]]

    return Decoder


class DrawnPoints:
    """Replaces the decoders at no cost: drawn logits and drawn qualities."""

    def __init__(self, drawn: DrawnMasks) -> None:
        self.drawn = drawn

    def decode(self, points: Tensor, pred_iou_thresh: float | None) -> DecodedPoints:
        object_ids, quality = self.drawn.next(len(points))
        passed = torch.nonzero(quality.flatten() > (pred_iou_thresh or 0))[:, 0]
        logits = self.drawn.objects[object_ids.flatten()[passed]]
        return DecodedPoints(quality, passed, logits, (logits.shape[1], logits.shape[2]))


class NoEncoder(nn.Module):
    """An image encoder without cost: it returns a constant embedding."""

    def __init__(self, sam: Sam, seed: int = 0) -> None:
        super().__init__()
        self.img_size = sam.image_encoder.img_size
        side = sam.prompt_encoder.image_embedding_size[0]
        generator = torch.Generator().manual_seed(seed)
        shape = (1, sam.prompt_encoder.embed_dim, side, side)
        self.register_buffer("embedding", torch.randn(shape, generator=generator))

    def forward(self, image: Tensor) -> Any:
        return self.embedding


def low_size(size: tuple[int, int], side: int = 256) -> tuple[int, int]:
    """Return (h, w) of an image in low-resolution pixels, with `side` as the longest side."""
    scale = side / max(size)
    return round(size[0] * scale), round(size[1] * scale)


def smooth_image(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Return smooth noise as uint8 (H, W, 3)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 3, max(2, size[0] // 64), max(2, size[1] // 64)), generator=generator)
    fine = F.interpolate(coarse, size, mode="bilinear")
    return (255 * fine[0].permute(1, 2, 0)).byte().numpy()
