"""Networks and decoder outputs for the mask bench, where no trained large SAM is at hand.

Random weights of a large SAM run the whole code at its real cost, but their masks are noise. So for
figures of time and memory the low-resolution logits are replaced by those of drawn objects, at the
place where the decoder hands them over: the decoder still does all of its work, and both generators
get the same masks.
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
_WITH_SPECK = 0.2  # share of the objects that have a small island elsewhere, as real masks have


def random_sam(kind: str, device: str = "cpu", seed: int = 5, gain: float = 1.6) -> Sam:
    """A SAM of a published size with random weights whose masks have parts and borders.

    torch's default weights give nearly the same mask for every point, made of single pixels. Here
    decoder weights keep the variance (times gain), and the four pixels that an upscaling
    convolution makes of one are nearly alike.
    """
    torch.manual_seed(seed)
    with torch.device(device):  # a CPU draws the weights of a ViT-H in many seconds
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
    """A random_sam of which PASSING of the candidates pass; the last one asked for is kept."""
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
    """Low-resolution logits for the points of an image, handed out in the order of the points.

    Attributes:
        objects: float32 (n, side, side) logits.
        of_point: int64 (points, 3), the objects that a point's three masks show.
        quality: float32 (points, 3), a predicted IoU for each.
        given: points handed out so far of the present image.
    """

    objects: Tensor
    of_point: Tensor
    quality: Tensor
    given: int = 0

    def next(self, n_points: int) -> tuple[Tensor, Tensor]:
        """Objects (n, 3) and qualities (n, 3) of the next points."""
        part = slice(self.given, self.given + n_points)
        self.given = part.stop % len(self.of_point)
        return self.of_point[part], self.quality[part]


def draw_masks(
    seen: tuple[int, int],
    points_per_side: int,
    side: int = 256,
    device: str = "cpu",
    seed: int = 0,
) -> DrawnMasks:
    """Objects in the part `seen` (h, w, in low-resolution pixels) that is not padding.

    Centres are uniform, radii log-uniform from 3 pixels to half of the short side, outlines are
    ellipses with waves. A point shows the smallest, middle and largest object under it, or the
    nearest one. Qualities: PASSING of them, at random, are above .88.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    objects = np.stack([_draw_object(rng, y, x, seen) for _ in range(OBJECTS)])
    grid = (np.arange(points_per_side) + 0.5) / points_per_side
    rows, columns = np.meshgrid(grid * seen[0], grid * seen[1], indexing="ij")
    at = objects[:, rows.ravel().astype(int), columns.ravel().astype(int)].T
    areas = (objects > 0).sum(axis=(1, 2))
    quality = 0.88 + 0.1 * (PASSING - rng.random((len(at), 3)))
    return DrawnMasks(
        torch.from_numpy(objects).to(device),
        torch.from_numpy(np.stack([_shown(value, areas) for value in at])).to(device),
        torch.from_numpy(quality.astype(np.float32)).to(device),
    )


def _draw_object(
    rng: np.random.Generator, y: np.ndarray, x: np.ndarray, seen: tuple[int, int]
) -> np.ndarray:
    centre = rng.uniform(0, seen[0]), rng.uniform(0, seen[1])
    radius = np.exp(rng.uniform(np.log(3), np.log(min(seen) / 2)))
    flat, phase = rng.uniform(0.4, 1), rng.uniform(0, 6.3)
    dy, dx = (y - centre[0]) / flat, x - centre[1]
    outline = radius * (1 + 0.15 * np.sin(5 * np.arctan2(dy, dx) + phase))
    logits = _SLOPE * (outline - np.hypot(dy, dx))
    if rng.random() < _WITH_SPECK:
        speck = np.hypot(y - rng.uniform(0, seen[0]), x - rng.uniform(0, seen[1]))
        logits = np.maximum(logits, _SLOPE * (1.5 - speck))
    return np.clip(logits, -15, 10).astype(np.float32)


def _shown(logits_at_point: np.ndarray, areas: np.ndarray) -> np.ndarray:
    under = np.flatnonzero(logits_at_point > 0)
    if not len(under):
        return np.repeat(np.argmax(logits_at_point), 3)
    under = under[np.argsort(areas[under])]
    return under[[0, len(under) // 2, -1]]


class DrawnDecoder(nn.Module):
    """Takes the place of a mask_decoder for the stock generator: logits are the drawn ones.

    Args:
        drawn: the masks.
        real: does its work first, and its qualities are returned; None costs nothing and returns
            the drawn qualities.
    """

    def __init__(self, drawn: DrawnMasks, real: nn.Module | None) -> None:
        super().__init__()
        self.drawn, self.real = drawn, real

    def forward(self, sparse_prompt_embeddings: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        shown, quality = self.drawn.next(len(sparse_prompt_embeddings))
        if self.real is not None:
            _, quality = self.real(sparse_prompt_embeddings=sparse_prompt_embeddings, **inputs)
        return self.drawn.objects[shown], quality


def drawn_shared_decoder(drawn: DrawnMasks) -> type[SharedImageDecoder]:
    """Our decoder at its full work, with the drawn logits for the masks that pass."""

    class Decoder(SharedImageDecoder):
        def decode(self, points: Tensor, pred_iou_thresh: float | None) -> DecodedPoints:
            decoded = super().decode(points, pred_iou_thresh)
            shown, _ = drawn.next(len(points))
            height, width = decoded.logits.shape[1:]
            logits = drawn.objects[shown.flatten()[decoded.passed], :height, :width]
            return replace(decoded, logits=logits)

    return Decoder


def drawn_stock_order(drawn: DrawnMasks, seen: tuple[int, int]) -> type[ReferenceDecoder]:
    """Our second look at doubtful masks at its full work, with their drawn logits again.

    `seen` is the part of the model input that is not padding, (h, w) in its pixels.
    """
    side = math.isqrt(len(drawn.of_point))
    scale = torch.tensor([side / seen[1], side / seen[0]])

    class Decoder(ReferenceDecoder):
        def logits(self, points: Tensor, outputs: Tensor) -> Tensor:
            super().logits(points, outputs)
            column, row = (points * scale.to(points)).long().unbind(1)
            return drawn.objects[drawn.of_point[row * side + column, outputs]]

    return Decoder


class DrawnPoints:
    """Takes the place of our decoders at no cost: drawn logits and drawn qualities."""

    def __init__(self, drawn: DrawnMasks) -> None:
        self.drawn = drawn

    def decode(self, points: Tensor, pred_iou_thresh: float | None) -> DecodedPoints:
        shown, quality = self.drawn.next(len(points))
        kept = torch.nonzero(quality.flatten() > (pred_iou_thresh or 0))[:, 0]
        logits = self.drawn.objects[shown.flatten()[kept]]
        return DecodedPoints(quality, kept, logits, (logits.shape[1], logits.shape[2]))


class NoEncoder(nn.Module):
    """An image encoder that costs nothing: a constant embedding."""

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
    """(h, w) of an image in low-resolution pixels: its longest side is `side`."""
    scale = side / max(size)
    return round(size[0] * scale), round(size[1] * scale)


def smooth_image(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """uint8 (H, W, 3) of smooth noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 3, max(2, size[0] // 64), max(2, size[1] // 64)), generator=generator)
    fine = F.interpolate(coarse, size, mode="bilinear")
    return (255 * fine[0].permute(1, 2, 0)).byte().numpy()
