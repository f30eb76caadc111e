# torch and segment-anything hide the types of a module's children from the type checker.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalSubscript=false
# pyright: reportOperatorIssue=false
"""How the small SAM learns: many points of an image decoded at once, and the losses.

Four things without which the masks hardly come to depend on the point:
  - a decoder that keeps the variance of its input at the start, with keys aligned to queries, so
    that attention peaks where the point is;
  - an auxiliary loss on encoder tokens: do these two lie on one object, on one part?
  - half of the time on 128 px windows, four times cheaper, then 256 px;
  - balanced cross entropy and dice first, focal loss and dice later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.transformer import Attention, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.masks.sam import SMALL_IMAGE_SIZE, SMALL_PATCH_SIZE

SIDE = SMALL_IMAGE_SIZE // SMALL_PATCH_SIZE  # tokens along a side of the padded square
PIXELS_PER_LOGIT = 2
LOGITS_PER_TOKEN = SMALL_PATCH_SIZE // PIXELS_PER_LOGIT
SMALLEST_TARGET = 16  # px; finer things are not asked for


@dataclass
class Batch:
    """images (B, 3, H, W) float 0..255; points (B, P, 2) px; targets (B, P, H/2, W/2, 2) of 0 or 1.

    token_ids (B, H/8, W/8, 2): object and part at the middle of each patch.
    """

    images: Tensor
    points: Tensor
    targets: Tensor
    token_ids: Tensor


def prepare_for_training(sam: Sam) -> None:
    """Keep the variance through the decoder, and let cross attention peak at the point at first."""
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


def encode_window(sam: Sam, images: Tensor, row: int, column: int) -> Tensor:
    """Embeddings (B, 64, h, w) of images that lie at token (row, column) of the padded square.

    Position tables are cut, not stretched, so that what a window teaches holds for the square.
    """
    encoder = sam.image_encoder
    h, w = images.shape[2] // SMALL_PATCH_SIZE, images.shape[3] // SMALL_PATCH_SIZE
    tables = {"pos_embed": encoder.pos_embed[:, row : row + h, column : column + w]}
    for index, block in enumerate(encoder.blocks):
        if block.window_size == 0:
            for axis, length in (("rel_pos_h", h), ("rel_pos_w", w)):
                table = getattr(block.attn, axis)
                tables[f"blocks.{index}.attn.{axis}"] = table[SIDE - length : SIDE + length - 1]
    normal = (images - sam.pixel_mean) / sam.pixel_std
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = torch.func.functional_call(encoder, tables, (normal,))
    return embeddings.float()


def attend(module: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """module(q, k, v) with leading dimensions that broadcast: points share their image's keys."""

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
    """transformer() for image (B, 1, N, C), image_pe (N, C), tokens (B, P, T, C)."""
    queries, keys = tokens, image
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.norm1(attend(layer.self_attn, queries, queries, queries))
        else:
            q = queries + tokens
            queries = layer.norm1(queries + attend(layer.self_attn, q, q, queries))
        found = attend(layer.cross_attn_token_to_image, queries + tokens, keys + image_pe, keys)
        queries = layer.norm2(queries + found)
        queries = layer.norm3(queries + layer.mlp(queries))
        told = attend(layer.cross_attn_image_to_token, keys + image_pe, queries + tokens, queries)
        keys = layer.norm4(keys + told)
    final = transformer.final_attn_token_to_image
    found = attend(final, queries + tokens, keys + image_pe, keys)
    return transformer.norm_final_attn(queries + found), keys


def upscale(sam: Sam, keys: Tensor) -> Tensor:
    """(.., N, 64) tokens to (.., N, 16, 8): the transposed convolutions, patch by patch."""
    first, norm, act, second, _ = sam.mask_decoder.output_upscaling
    wide = keys @ first.weight.permute(0, 2, 3, 1).flatten(1)
    wide = wide.unflatten(-1, (4, -1)) + first.bias
    wide = act(F.layer_norm(wide, wide.shape[-1:], norm.weight, norm.bias, norm.eps))
    fine = wide @ second.weight.permute(0, 2, 3, 1).flatten(1)
    fine = act(fine.unflatten(-1, (4, -1)) + second.bias)
    return fine.flatten(-3, -2)


def into_patches(masks: Tensor) -> Tensor:
    """(B, P, h*4, w*4, K) to (B, P, h*w*16, K), in the order in which `upscale` has its pixels."""
    b, p, height, width, k = masks.shape
    h, w = height // LOGITS_PER_TOKEN, width // LOGITS_PER_TOKEN
    split = masks.view(b, p, h, 2, 2, w, 2, 2, k)
    return split.permute(0, 1, 2, 5, 3, 6, 4, 7, 8).reshape(b, p, h * w * 16, k)


def decode_points(
    sam: Sam, embeddings: Tensor, points: Tensor, row: int, column: int, valid_rows: int
) -> tuple[Tensor, Tensor]:
    """Mask logits (B, P, 4, valid_rows*w*16) in patch order and predicted IoU (B, P, 4)."""
    b, _, h, w = embeddings.shape
    decoder, prompts = sam.mask_decoder, sam.prompt_encoder
    offset = torch.tensor([column, row]) * SMALL_PATCH_SIZE
    flat = (points + offset).flatten(0, 1)[:, None]
    sparse = prompts._embed_points(flat, torch.ones(len(flat), 1), pad=True)
    sparse = sparse.unflatten(0, (b, -1))
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(b, points.shape[1], -1, -1), sparse], dim=2)
    image_pe = prompts.get_dense_pe()[0, :, row : row + h, column : column + w]
    image = embeddings.flatten(2).transpose(1, 2)[:, None] + prompts.no_mask_embed.weight
    queries, keys = transform(
        decoder.transformer, image, image_pe.flatten(1).transpose(0, 1), tokens
    )
    fine = upscale(sam, keys[:, :, : valid_rows * w]).flatten(2, 3)
    heads = decoder.output_hypernetworks_mlps
    weights = torch.stack([mlp(queries[:, :, 1 + i]) for i, mlp in enumerate(heads)], dim=2)
    return weights @ fine.transpose(-1, -2), decoder.iou_prediction_head(queries[:, :, 0])


class PairHeads(nn.Module):
    """Tells from two encoder tokens whether they lie on one object, and on one part."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.ModuleList([nn.Linear(64, 32, bias=False) for _ in range(2)])
        self.scale = nn.Parameter(torch.tensor([8.0, 8.0]))
        self.bias = nn.Parameter(torch.tensor([-4.0, -4.0]))

    def forward(self, embeddings: Tensor, ids: Tensor, sampled: int = 192) -> Tensor:
        tokens = embeddings[:, :, : ids.shape[1]].flatten(2).transpose(1, 2)
        chosen = torch.randperm(tokens.shape[1])[:sampled]
        tokens, ids = tokens[:, chosen], ids.flatten(1, 2)[:, chosen]
        total = torch.zeros(())
        for i, project in enumerate(self.project):
            unit = F.normalize(project(tokens), dim=-1)
            logits = self.scale[i] * (unit @ unit.transpose(1, 2)) + self.bias[i]
            same = ids[:, :, None, i] == ids[:, None, :, i]
            total = total + F.softplus(-logits)[same].mean() + F.softplus(logits)[~same].mean()
        return total


def mask_losses(logits: Tensor, targets: Tensor, focal: bool) -> Tensor:
    """Loss (B, P, masks, 2) of every mask (B, P, masks, M) against every target (B, P, M, 2)."""
    prob = logits.sigmoid()
    wrong_inside, wrong_outside = F.softplus(-logits), F.softplus(logits)
    area = targets.sum(dim=2, keepdim=True)
    count = targets.shape[2]
    dice = 1 - (2 * prob @ targets + 1) / (prob.sum(-1, keepdim=True) + area + 1)
    if focal:
        # Both sides weigh alike: weights of .25 and .75 leave an unsure mask below its threshold.
        wrong_inside = (1 - prob) ** 2 * wrong_inside
        wrong_outside = prob**2 * wrong_outside
        return 10 * (wrong_inside @ targets + wrong_outside @ (1 - targets)) / count + dice
    inside = wrong_inside @ targets / area.clamp(min=1)
    outside = wrong_outside @ (1 - targets) / (count - area).clamp(min=1)
    return 0.5 * (inside + outside) + dice


def true_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """IoU (B, P, masks, 2) of the thresholded masks with every target."""
    masks = (logits > 0).float()
    common = masks @ targets
    union = masks.sum(-1, keepdim=True) + targets.sum(dim=2, keepdim=True) - common
    return common / union.clamp(min=1)


def batch_loss(
    sam: Sam, heads: PairHeads, batch: Batch, padded: bool, focal: bool, pair_weight: float
) -> tuple[Tensor, Tensor]:
    """The loss of a batch and, for the log, the mean best-of-3 IoU with object and part (2,).

    padded: fill up SAM's square, as in use; else the images are encoded alone. As wide as the
    square they lie at its top, as in use; smaller ones at a random place of it.
    focal: focal loss instead of balanced cross entropy.
    """
    h, w = (length // SMALL_PATCH_SIZE for length in batch.images.shape[2:])
    images, row, column = batch.images, 0, 0
    if padded:
        mean = sam.pixel_mean  # padding is zero after normalising
        images = mean.expand(len(images), 3, SMALL_IMAGE_SIZE, SMALL_IMAGE_SIZE).clone()
        images[:, :, : h * SMALL_PATCH_SIZE, : w * SMALL_PATCH_SIZE] = batch.images
    elif w < SIDE:
        row, column = (int(torch.randint(0, SIDE - length + 1, ())) for length in (h, w))
    embeddings = encode_window(sam, images, row, column)
    logits, predicted = decode_points(sam, embeddings, batch.points, row, column, h)
    targets = into_patches(batch.targets)
    asked = (targets.sum(2) >= SMALLEST_TARGET / PIXELS_PER_LOGIT**2).float()
    losses = mask_losses(logits, targets, focal)
    best = losses[:, :, 1:].amin(dim=2)
    single = losses[:, :, 0, 0]
    iou = true_iou(logits.detach(), targets)
    goal = torch.cat([iou[:, :, :1, 0], iou[:, :, 1:].amax(dim=3)], dim=2)
    share = asked.sum((0, 1)).clamp(min=1)
    loss = ((best * asked).sum((0, 1)) / share).sum() + 0.2 * (single * asked[..., 0]).mean()
    loss = loss + F.mse_loss(predicted, goal)
    loss = loss + pair_weight * heads(embeddings, batch.token_ids)
    return loss, (iou[:, :, 1:].amax(dim=2) * asked).sum((0, 1)) / share
