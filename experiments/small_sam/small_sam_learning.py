# torch and segment-anything hide the types of a module's children from the type checker.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalSubscript=false
# pyright: reportOperatorIssue=false
"""Training of the small SAM: decoding of many points per image, and the losses.

Four measures make the masks depend on the point:
  - a decoder that keeps the variance of its input at the start, with keys aligned to queries, so
    that attention peaks where the point is;
  - an auxiliary loss on pairs of encoder tokens: same object or not, same part or not;
  - windows of 128 px at first, which are four times cheaper, then of 256 px;
  - balanced cross entropy and dice at first, focal loss and dice later.

This module neither reads values back from the device nor draws random numbers, so that a whole update
fits into a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.transformer import Attention, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.masks.sam.decoder import embed_points
from sfss_ray.masks.sam.networks import SMALL_IMAGE_SIZE, SMALL_PATCH_SIZE

SIDE = SMALL_IMAGE_SIZE // SMALL_PATCH_SIZE  # tokens along a side of the padded square
PIXELS_PER_LOGIT = 2
LOGITS_PER_TOKEN = SMALL_PATCH_SIZE // PIXELS_PER_LOGIT
SMALLEST_TARGET = 16  # px; smaller objects are not used as targets
PAIRED_TOKENS = 192  # per image, for the loss on pairs


@dataclass
class Batch:
    """Windows of scenes with point prompts and their targets.

    Attributes:
        images: uint8 (B, H, W, 3).
        points: float (B, P, 2), x and y in px.
        target_ids: int (B, P, 2), object and part under each point.
        ids: int (B, H/2, W/2, 2), object and part of each logit.
        token_ids: int (B, H/8, W/8, 2), object and part at the middle of each patch.
        paired: int (192,), tokens of the window whose pairs are compared.
        position: int (2,), row and column of the token of the padded square where the windows start.
        padded: pad to the square of SAM, as at inference. Otherwise the images are encoded alone.
        focal: focal loss instead of balanced cross entropy.
        rendered: number of scenes rendered for this batch.
    """

    images: Tensor
    points: Tensor
    target_ids: Tensor
    ids: Tensor
    token_ids: Tensor
    paired: Tensor
    position: Tensor
    padded: bool
    focal: bool
    rendered: int

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Batch:
        """Return the batch with other tensors."""
        return replace(self, **tensors)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        return self.with_tensors({name: value.to(device) for name, value in self.tensors().items()})

    def targets(self) -> Tensor:
        """Return targets (B, P, M, 2) in {0, 1}: object and part of each point, M in patch order."""
        ids = into_patches(self.ids)
        return (ids[:, None] == self.target_ids[:, :, None]).float()


def prepare_for_training(sam: Sam) -> None:
    """Initialise the network: variance is kept through the decoder, attention peaks at the point."""
    for module in sam.mask_decoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=(2 / module.in_channels) ** 0.5)
            nn.init.zeros_(module.bias)
    for name, module in sam.mask_decoder.named_modules():
        if isinstance(module, Attention) and "self_attn" not in name:
            module.k_proj.weight.data = 1.5 * module.q_proj.weight.data
    for module in sam.image_encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)


def cut_table(table: Tensor, position: Tensor, h: int, w: int) -> Tensor:
    """Return the (h, w) tokens of a table (N, SIDE, SIDE, C) that start at `position` (2,)."""
    rows, columns = (
        start + torch.arange(length, device=table.device)
        for start, length in zip(position, (h, w), strict=True)
    )
    return table.index_select(1, rows).index_select(2, columns)


def encode_window(sam: Sam, images: Tensor, position: Tensor) -> Tensor:
    """Return embeddings (B, 64, h, w) of images that lie at token `position` of the padded square.

    Position tables are cropped, not resized, so that learning from a window carries over to the square.
    """
    encoder = sam.image_encoder
    h, w = images.shape[2] // SMALL_PATCH_SIZE, images.shape[3] // SMALL_PATCH_SIZE
    tables = {"pos_embed": cut_table(encoder.pos_embed, position, h, w)}
    for index, block in enumerate(encoder.blocks):
        if block.window_size == 0:
            for axis, length in (("rel_pos_h", h), ("rel_pos_w", w)):
                table = getattr(block.attn, axis)
                tables[f"blocks.{index}.attn.{axis}"] = table[SIDE - length : SIDE + length - 1]
    normal = (images - sam.pixel_mean) / sam.pixel_std
    # The encoder creates small tables on the default device. On another device each would be a copy.
    with images.device, torch.autocast(images.device.type, torch.bfloat16):
        embeddings = torch.func.functional_call(encoder, tables, (normal,))
    return embeddings.float()


def attend(module: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return module(q, k, v) with broadcasting, so that all points of an image share its keys."""

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (module.num_heads, -1)).transpose(-3, -2)

    queries, keys, values = (
        split(module.q_proj(q)),
        split(module.k_proj(k)),
        split(module.v_proj(v)),
    )
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    mixed = scores.softmax(dim=-1) @ values
    return module.out_proj(mixed.transpose(-3, -2).flatten(-2))


def transform(
    transformer: TwoWayTransformer, image: Tensor, image_pe: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the two-way transformer for image (B, 1, N, C), image_pe (N, C) and tokens (B, P, T, C)."""
    queries, keys = tokens, image
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.norm1(attend(layer.self_attn, queries, queries, queries))
        else:
            q = queries + tokens
            queries = layer.norm1(queries + attend(layer.self_attn, q, q, queries))
        attended = attend(layer.cross_attn_token_to_image, queries + tokens, keys + image_pe, keys)
        queries = layer.norm2(queries + attended)
        queries = layer.norm3(queries + layer.mlp(queries))
        update = attend(layer.cross_attn_image_to_token, keys + image_pe, queries + tokens, queries)
        keys = layer.norm4(keys + update)
    final = transformer.final_attn_token_to_image
    attended = attend(final, queries + tokens, keys + image_pe, keys)
    return transformer.norm_final_attn(queries + attended), keys


def upscale(sam: Sam, keys: Tensor) -> Tensor:
    """Apply the transposed convolutions patch by patch: tokens (.., N, 64) to (.., N, 16, 8)."""
    first, norm, act, second, _ = sam.mask_decoder.output_upscaling
    wide = keys @ first.weight.permute(0, 2, 3, 1).flatten(1)
    wide = wide.unflatten(-1, (4, -1)) + first.bias
    wide = act(F.layer_norm(wide, wide.shape[-1:], norm.weight, norm.bias, norm.eps))
    fine = wide @ second.weight.permute(0, 2, 3, 1).flatten(1)
    fine = act(fine.unflatten(-1, (4, -1)) + second.bias)
    return fine.flatten(-3, -2)


def into_patches(maps: Tensor) -> Tensor:
    """Reorder maps (B, h*4, w*4, K) to (B, h*w*16, K), the pixel order of `upscale`."""
    b, height, width, k = maps.shape
    h, w = height // LOGITS_PER_TOKEN, width // LOGITS_PER_TOKEN
    split = maps.view(b, h, 2, 2, w, 2, 2, k)
    return split.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, h * w * 16, k)


def point_tokens(sam: Sam, points: Tensor, position: Tensor) -> Tensor:
    """Return the prompt tokens (B, P, 2, C) of points (B, P, 2) in px of a window."""
    pixels = (points + SMALL_PATCH_SIZE * position.flip(0)).flatten(0, 1)
    return embed_points(sam.prompt_encoder, pixels).unflatten(0, points.shape[:2])


def decode_points(
    sam: Sam, embeddings: Tensor, points: Tensor, position: Tensor, valid_rows: int
) -> tuple[Tensor, Tensor]:
    """Return mask logits (B, P, 4, valid_rows*w*16) in patch order and predicted IoU (B, P, 4)."""
    b, _, h, w = embeddings.shape
    decoder, prompts = sam.mask_decoder, sam.prompt_encoder
    sparse = point_tokens(sam, points, position)
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(b, points.shape[1], -1, -1), sparse], dim=2)
    image_pe = cut_table(prompts.get_dense_pe().permute(0, 2, 3, 1), position, h, w)[0].flatten(
        0, 1
    )
    image = embeddings.flatten(2).transpose(1, 2)[:, None] + prompts.no_mask_embed.weight
    # On a CPU bf16 is faster only for the wide matrices of the encoder. Positions stay in float32.
    with torch.autocast(embeddings.device.type, torch.bfloat16, enabled=embeddings.is_cuda):
        queries, keys = transform(decoder.transformer, image, image_pe, tokens)
        fine = upscale(sam, keys[:, :, : valid_rows * w]).flatten(2, 3)
        heads = decoder.output_hypernetworks_mlps
        weights = torch.stack([mlp(queries[:, :, 1 + i]) for i, mlp in enumerate(heads)], dim=2)
        predicted = decoder.iou_prediction_head(queries[:, :, 0])
        logits = weights @ fine.transpose(-1, -2)
    return logits.float(), predicted.float()


class PairHeads(nn.Module):
    """Predicts whether two encoder tokens lie on the same object, and on the same part."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.ModuleList([nn.Linear(64, 32, bias=False) for _ in range(2)])
        self.scale = nn.Parameter(torch.tensor([8.0, 8.0]))
        self.bias = nn.Parameter(torch.tensor([-4.0, -4.0]))

    def forward(self, embeddings: Tensor, ids: Tensor, paired: Tensor) -> Tensor:
        tokens = embeddings[:, :, : ids.shape[1]].flatten(2).transpose(1, 2)
        tokens, ids = tokens.index_select(1, paired), ids.flatten(1, 2).index_select(1, paired)
        total = tokens.new_zeros(())
        for i, project in enumerate(self.project):
            unit = F.normalize(project(tokens), dim=-1)
            logits = self.scale[i] * (unit @ unit.transpose(1, 2)) + self.bias[i]
            same = ids[:, :, None, i] == ids[:, None, :, i]
            total = total + mean_where(F.softplus(-logits), same)
            total = total + mean_where(F.softplus(logits), ~same)
        return total


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of the chosen values, 0 without any. Indexing would synchronise the GPU."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def mask_losses(logits: Tensor, targets: Tensor, focal: bool) -> Tensor:
    """Return the loss (B, P, masks, 2) of each mask (B, P, masks, M) with each target (B, P, M, 2)."""
    prob = logits.sigmoid()
    wrong_inside, wrong_outside = F.softplus(-logits), F.softplus(logits)
    area = targets.sum(dim=2, keepdim=True)
    count = targets.shape[2]
    dice = 1 - (2 * prob @ targets + 1) / (prob.sum(-1, keepdim=True) + area + 1)
    if focal:
        # Equal weights for both sides: .25 and .75 leave uncertain masks below the threshold.
        wrong_inside = (1 - prob) ** 2 * wrong_inside
        wrong_outside = prob**2 * wrong_outside
        return 10 * (wrong_inside @ targets + wrong_outside @ (1 - targets)) / count + dice
    inside = wrong_inside @ targets / area.clamp(min=1)
    outside = wrong_outside @ (1 - targets) / (count - area).clamp(min=1)
    return 0.5 * (inside + outside) + dice


def true_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the IoU (B, P, masks, 2) of the thresholded masks with each target."""
    masks = (logits > 0).float()
    common = masks @ targets
    union = masks.sum(-1, keepdim=True) + targets.sum(dim=2, keepdim=True) - common
    return common / union.clamp(min=1)


def batch_loss(
    sam: Sam, heads: PairHeads, batch: Batch, pair_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss of a batch, and for the log the mean best-of-3 IoU with object and part (2,).

    `pair_weight` is a scalar tensor on the device.
    """
    images = batch.images.permute(0, 3, 1, 2).float()
    h, w = (length // SMALL_PATCH_SIZE for length in images.shape[2:])
    if batch.padded:
        mean = sam.pixel_mean  # so that the padding is zero after normalisation
        square = mean.expand(len(images), 3, SMALL_IMAGE_SIZE, SMALL_IMAGE_SIZE).clone()
        square[:, :, : h * SMALL_PATCH_SIZE, : w * SMALL_PATCH_SIZE] = images
        images = square
    embeddings = encode_window(sam, images, batch.position)
    logits, predicted = decode_points(sam, embeddings, batch.points, batch.position, h)
    targets = batch.targets()
    counted = (targets.sum(2) >= SMALLEST_TARGET / PIXELS_PER_LOGIT**2).float()
    losses = mask_losses(logits, targets, batch.focal)
    best = losses[:, :, 1:].amin(dim=2)
    single = losses[:, :, 0, 0]
    iou = true_iou(logits.detach(), targets)
    goal = torch.cat([iou[:, :, :1, 0], iou[:, :, 1:].amax(dim=3)], dim=2)
    share = counted.sum((0, 1)).clamp(min=1)
    loss = ((best * counted).sum((0, 1)) / share).sum() + 0.2 * (single * counted[..., 0]).mean()
    loss = loss + F.mse_loss(predicted, goal)
    loss = loss + pair_weight * heads(embeddings, batch.token_ids, batch.paired)
    return loss, (iou[:, :, 1:].amax(dim=2) * counted).sum((0, 1)) / share
