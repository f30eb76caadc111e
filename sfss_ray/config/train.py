"""Knobs of stage 2: optimiser, augmentation, pairs, losses, the loop; and of pretraining."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sfss_ray.config.checks import (
    are_numbers,
    require,
    require_one_of,
    require_range,
    require_zooms,
)
from sfss_ray.errors import ConfigError


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning-rate schedule (linear warm-up, then polynomial decay)."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw for transformers and small networks; sgd (momentum .9) is the CNN line of the field."""
    learning_rate: float = 2e-4
    """Peak learning rate of the backbone."""
    head_multiplier: float = 1.0
    """The classifier and any new head learn at learning_rate times this."""
    weight_decay: float = 0.01
    """Decoupled for adamw, L2 for sgd."""
    warmup_share: float = 0.05
    """Share of num_steps over which the learning rate rises from 0; 0 to 1."""
    warmup_steps: int = 0
    """Steps over which it rises; 0: warmup_share decides."""
    poly_power: float = 0.9
    """Rate falls as (1 - progress)**poly_power; 0 keeps it constant."""
    max_grad_norm: float = 5.0
    """Gradients are scaled down to this L2 norm."""
    trainable: Literal["all", "norm"] = "all"
    """norm: only the scales and shifts of normalisation layers learn, as in TENT."""

    def __post_init__(self):
        require_one_of(self, "optimizer", ("adamw", "sgd"))
        require_one_of(self, "trainable", ("all", "norm"))
        require(self, "learning_rate", 0, 10, above=True)
        require(self, "head_multiplier", 0, 1000, above=True)
        require(self, "weight_decay", 0, 1)
        require(self, "warmup_share", 0, 1)
        require(self, "warmup_steps", 0)
        require(self, "poly_power", 0, 10)
        require(self, "max_grad_norm", 0, above=True)


@dataclass(frozen=True)
class AugmentConfig:
    """One geometry for image, mask ids and labels; then a weak and a strong view of the colours."""

    crop_size: tuple[int, int] = (512, 512)
    """(height, width) of a training crop, pixels; images are scaled up where they are smaller."""
    scale_range: tuple[float, float] = (0.75, 1.5)
    """Random zoom before the crop, log-uniform."""
    flip: bool = True
    """Mirror half of the crops."""
    jitter: float = 0.5
    """Strong view: brightness, contrast and saturation change by up to this share; 0 to 1."""
    hue: float = 0.1
    """Strong view: hue turns by up to this share of the colour circle; 0 to .5."""
    jitter_probability: float = 0.8
    """Strong view: share of crops whose colours are jittered."""
    grey_probability: float = 0.2
    """Strong view: share of crops made grey."""
    blur_probability: float = 0.5
    """Strong view: share of crops blurred (sigma .15 to 1.15 pixels)."""
    class_mix: float = 0.0
    """Share of crops that get half of the classes of their neighbour in the batch pasted in; 0 to 1."""

    def __post_init__(self):
        if not are_numbers(self.crop_size, whole=True) or min(self.crop_size) < 32:
            raise ConfigError(
                f"crop_size is {self.crop_size!r}: allowed is (height, width), each 32 or more pixels"
            )
        require_range(self, "scale_range", 0)
        require(self, "jitter", 0, 1)
        require(self, "hue", 0, 0.5)
        for name in ("jitter_probability", "grey_probability", "blur_probability", "class_mix"):
            require(self, name, 0, 1)


@dataclass(frozen=True)
class PairConfig:
    """Which grid cells become anchors, positives and negatives."""

    min_purity: float = 0.8
    """A mask is reliable if this share of its cells has the mask's own class (teacher's argmax)."""
    min_cells: int = 4
    """A reliable mask has at least this many grid cells."""
    merged_share: float = 0.3
    """A mask is merged (left out) when two classes each have this share at merged_confidence."""
    merged_confidence: float = 0.9
    """Confidence at which a cell counts as evidence that a mask joins two classes."""
    cell_share: float = 0.75
    """A grid cell takes a mask id only if this share of its pixels bears it."""
    anchors_per_image: int = 256
    """Student cells drawn per image, balanced over masks by 1/sqrt(cells)."""
    anchors_per_mask: int = 16
    """Most anchors from one mask; half of them hard ones."""
    positives: int = 8
    """Positive vectors per anchor, of each kind (intra-instance, intra-class)."""
    negatives: int = 512
    """Negative vectors per anchor: half uniform over classes, half semi-hard."""
    unlabelled_top_k: int = 3
    """A mask may be a negative of an unlabelled one only outside its top-k classes."""
    bank_size: int = 512
    """Mask prototypes remembered per class; 0 switches the memory bank off."""
    bank_per_image: int = 4
    """Most prototypes one image adds to one class."""

    def __post_init__(self):
        require(self, "min_purity", 0, 1)
        require(self, "min_cells", 1)
        require(self, "merged_share", 0, 0.5, above=True)
        require(self, "merged_confidence", 0, 1)
        require(self, "cell_share", 0.5, 1, above=True)
        for name in ("anchors_per_image", "anchors_per_mask", "positives", "negatives"):
            require(self, name, 1)
        require(self, "unlabelled_top_k", 1)
        require(self, "bank_size", 0)
        require(self, "bank_per_image", 1)


@dataclass(frozen=True)
class LossConfig:
    """L = L_seg + contrast_weight * ramp * (instance_share * L_ins + (1 - instance_share) * L_cls)."""

    temperature: float = 0.1
    """Divides the cosine similarities; smaller looks harder at the nearest negatives. Above 0."""
    contrast_weight: float = 0.03
    """Weight of the contrastive part; 0 is plain self-training."""
    instance_share: float = 0.5
    """beta: intra-instance against intra-class contrast; 1 is intra-instance alone."""
    ramp: tuple[float, float] = (0.05, 0.2)
    """The contrastive part rises from 0 to 1 between these shares of num_steps."""
    projection: Literal["none", "mlp"] = "mlp"
    """none: contrast the features the classifier reads; mlp: a new projection head in between, which
    keeps large weights from harming rare classes."""
    embedding_dim: int = 256
    """Size of the embedding when projection is mlp."""
    thresholds: Literal["class_adaptive", "paper_like"] = "class_adaptive"
    """Weights of L_seg: per-class thresholds, or one share of confident pixels per image."""
    confidence: float = 0.968
    """paper_like: a pixel counts as confident above this teacher probability."""
    class_quantile: float = 0.5
    """class_adaptive: share of each class's pixels that are kept; 0 to 1, 1 keeps all."""
    confidence_cap: float = 0.9
    """class_adaptive: no class needs more than this confidence."""
    label_space: Literal["pseudo_labels", "entropy"] = "pseudo_labels"
    """L_seg: cross entropy with pseudo-labels, or the student's own entropy (TENT's loss)."""
    mask_vote: Literal["none", "majority", "pooled"] = "pooled"
    """Masks in label space: each mask's majority class, or pixel and mask evidence pooled."""
    vote_weight: float = 0.5
    """pooled: share of the mask's evidence against the pixel's own; 0 to 1."""
    vote_min_purity: float = 0.0
    """A mask speaks for its pixels only if this share of them has its class already; 0 to 1."""
    prior_power: float = 0.25
    """Teacher probabilities are divided by their running class share to this power; 0 to 1."""
    teacher_scales: tuple[float, ...] = (1.0,)
    """Zooms at which the teacher looks for pseudo-labels: its probabilities are the mean over them."""
    teacher_flip: bool = False
    """The teacher also looks at the mirror image of each view."""
    region_source: Literal["masks", "pseudo_labels"] = "masks"
    """What counts as a region in the contrast: a mask, or an image's confident pixels of a class."""

    def __post_init__(self):
        require(self, "temperature", 0, 100, above=True)
        require_one_of(self, "label_space", ("pseudo_labels", "entropy"))
        require_one_of(self, "mask_vote", ("none", "majority", "pooled"))
        require_one_of(self, "region_source", ("masks", "pseudo_labels"))
        for name in ("vote_weight", "vote_min_purity", "prior_power"):
            require(self, name, 0, 1)
        require_zooms(self, "teacher_scales")
        require(self, "contrast_weight", 0, 1000)
        require(self, "instance_share", 0, 1)
        low, high = self.ramp if are_numbers(self.ramp) else (1, 0)
        if not 0 <= low <= high <= 1:
            raise ConfigError(
                f"ramp is {self.ramp!r}: allowed is (start, end), 0 <= start <= end <= 1"
            )
        require_one_of(self, "projection", ("none", "mlp"))
        require(self, "embedding_dim", 2, 4096)
        require_one_of(self, "thresholds", ("class_adaptive", "paper_like"))
        require(self, "confidence", 0, 1)
        require(self, "class_quantile", 0, 1, above=True)
        require(self, "confidence_cap", 0, 1)


@dataclass(frozen=True)
class TrainConfig:
    """Stage 2: the teacher-student loop."""

    num_steps: int = 4000
    """Optimiser steps."""
    batch_size: int = 4
    """Images per step over all workers together."""
    accumulate: int = 1
    """Parts that a worker's share of the batch is worked through in, one after the other: less memory,
    the same batch. Each part's losses are means over itself."""
    ema_momentum: float = 0.999
    """teacher = ema_momentum * teacher + (1 - ema_momentum) * student, after every step; 0 to 1."""
    batch_norm: Literal["adapt", "target", "frozen"] = "target"
    """Statistics of BatchNorm. frozen: the source's; target: estimated on weak views of the target
    before step 1, then fixed; adapt: estimated so, then running on (the teacher's follow by
    ema_momentum, as its weights do). On CPU workers adapt normalises each worker's share by itself, so
    there results depend on their number."""
    statistics_steps: int = 20
    """With target and adapt: batches that the estimate is the mean of."""
    statistics_share: float = 1.0
    """With target and adapt: share of the target's statistics against the source's, 0 to 1."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast of the networks; losses always run in float32."""
    channels_last: bool = False
    """Memory layout of the networks; faster on most GPUs with bf16."""
    compile: bool = False
    """torch.compile the student: the first steps take a minute or more, the rest are faster on most
    GPUs. Needs a C++ compiler on the CPU; rounding differs."""
    evaluate_every: int = 500
    """Steps between two looks at the held-out images (and checkpoints)."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    pairs: PairConfig = field(default_factory=PairConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self):
        require(self, "num_steps", 1)
        require(self, "batch_size", 1)
        require(self, "accumulate", 1)
        require(self, "ema_momentum", 0, 1)
        require_one_of(self, "batch_norm", ("adapt", "target", "frozen"))
        require(self, "statistics_steps", 0)
        require(self, "statistics_share", 0, 1)
        require_one_of(self, "precision", ("fp32", "bf16"))
        require(self, "evaluate_every", 1)


@dataclass(frozen=True)
class PretrainConfig:
    """Training of a source model on labelled images, for people who have none yet."""

    network: str = "compact"
    """Name of a network in sfss_ray.models."""
    num_steps: int = 4000
    """Optimiser steps."""
    batch_size: int = 8
    """Images per step over all workers together."""
    accumulate: int = 1
    """Parts that a worker's share of the batch is worked through in, one after the other: less memory,
    the same batch. Each part's losses are means over itself."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast of the network."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-3))
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self):
        require(self, "num_steps", 1)
        require(self, "batch_size", 1)
        require(self, "accumulate", 1)
        require(self, "checkpoint_every", 1)
        require_one_of(self, "precision", ("fp32", "bf16"))
