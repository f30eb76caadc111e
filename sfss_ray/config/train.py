"""Knobs of stage 2 (optimiser, augmentation, pairs, losses, training) and of pretraining."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from sfss_ray.config.ranges import (
    Common,
    Count,
    Interval,
    PositiveInt,
    Range,
    Research,
    Share,
    Sizes,
    Zooms,
    check_knobs,
)
from sfss_ray.errors import ConfigError

_CropSize = Annotated[
    tuple[int, int],
    Sizes("height", "width", at_least=32, at_most=32766),  # OpenCV cuts out no longer side
    Common,
]

LEAST_SOURCE_SHARE = 0.25
SOURCE_MODEL_IMAGES = 8
"""Training images that the source model counts as, where its share in the student is chosen."""
NEIGHBOUR_WEIGHT = 2.0
"""Weight of the opinion of a mask's neighbours, where it is not set and masks can be compared."""
STATISTICS_BATCH = 2
"""Whole images per batch when BatchNorm statistics are estimated. Networks that normalise a pooled
vector need two."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning-rate schedule (linear warm-up, then polynomial decay)."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw suits transformers and small networks. sgd (momentum 0.9) is usual for CNNs."""
    learning_rate: Annotated[float, Range(0, 10, above=True), Common] = 2e-4
    """Peak learning rate of the backbone."""
    head_multiplier: Annotated[float, Range(0, 1000, above=True)] = 1.0
    """The classifier and any new head learn at learning_rate times this."""
    weight_decay: Share = 0.01
    """Weight decay: decoupled for adamw, L2 for sgd."""
    warmup_share: Share = 0.05
    """Share of num_steps over which the learning rate rises from 0."""
    warmup_steps: Count = 0
    """Steps over which the learning rate rises. 0: warmup_share decides."""
    poly_power: Annotated[float, Range(0, 10)] = 0.9
    """The rate falls as (1 - progress)**poly_power. 0 keeps it constant."""
    max_grad_norm: Annotated[float, Range(0, above=True)] = 5.0
    """Gradients are scaled down to this L2 norm."""
    trainable: Annotated[Literal["all", "norm"], Research] = "all"
    """norm: only the scales and shifts of normalisation layers learn, as in TENT."""

    def __post_init__(self):
        check_knobs(self)


@dataclass(frozen=True)
class AugmentConfig:
    """One geometry for image, mask ids and labels, then a weak and a strong view of the colours."""

    crop_size: _CropSize | None = None
    """(height, width) of a training crop in pixels. Smaller images are scaled up. If it is not set, it
    is chosen from the images and printed: a typical image fills such a crop at the smallest zoom, and
    a crop has at most 512 * 512 pixels."""
    scale_range: Annotated[tuple[float, float], Interval(0, above=True)] = (0.75, 1.5)
    """Random zoom before the crop, log-uniform."""
    max_size: Annotated[int, Range(32)] | None = None
    """Longest image side that scale_range refers to, in pixels: longer images count as scaled down to
    it. None: scale_range refers to the image as it is, or with a chosen crop_size to the size that
    evaluation.max_size allows."""
    flip: bool = True
    """Mirror half of the crops."""
    jitter: Share = 0.5
    """Strong view: brightness, contrast and saturation change by up to this share."""
    hue: Annotated[float, Range(0, 0.5)] = 0.1
    """Strong view: hue turns by up to this share of the colour circle."""
    jitter_probability: Share = 0.8
    """Strong view: share of crops whose colours are jittered."""
    grey_probability: Share = 0.2
    """Strong view: share of crops made grey."""
    blur_probability: Share = 0.5
    """Strong view: share of crops blurred (sigma 0.15 to 1.15 pixels)."""
    class_mix: Annotated[float, Range(0, 1), Research] = 0.0
    """Share of crops into which half the classes of their neighbour in the batch are pasted."""

    def __post_init__(self):
        check_knobs(self)

    @property
    def chosen_crop_size(self) -> tuple[int, int]:
        """`crop_size`, which a run settles when it checks its inputs.

        Raises:
            ConfigError: it is still open.
        """
        if self.crop_size is None:
            raise ConfigError(
                "augment.crop_size is not set, and only a run chooses it from its images: set it to"
                " (height, width) in pixels"
            )
        return self.crop_size


@dataclass(frozen=True)
class PairConfig:
    """Which grid cells become anchors, positives and negatives."""

    min_purity: Annotated[float, Range(0, 1), Research] = 0.8
    """A mask is reliable if this share of its cells has the mask's own class (teacher's argmax)."""
    min_cells: Annotated[int, Range(1), Research] = 4
    """A reliable mask has at least this many grid cells."""
    merged_share: Annotated[float, Range(0, 0.5, above=True), Research] = 0.3
    """A mask is merged (left out) when two classes each have this share at merged_confidence."""
    merged_confidence: Annotated[float, Range(0, 1), Research] = 0.9
    """Confidence at which a cell counts as evidence that a mask joins two classes."""
    cell_share: Annotated[float, Range(0.5, 1, above=True), Research] = 0.75
    """A grid cell takes a mask id only if this share of its pixels has it."""
    anchors_per_image: PositiveInt = 256
    """Student cells drawn per image, balanced over masks by 1/sqrt(cells)."""
    anchors_per_mask: Annotated[int, Range(1), Research] = 16
    """Largest number of anchors from one mask. Half of them are hard ones."""
    positives: Annotated[int, Range(1), Research] = 8
    """Positive vectors per anchor, of each kind (intra-instance, intra-class)."""
    negatives: PositiveInt = 512
    """Negative vectors per anchor: half uniform over classes, half semi-hard."""
    ring_negatives: Annotated[int, Range(1), Research] = 32
    """Negative vectors per anchor of the contrast at boundaries."""
    unlabelled_top_k: Annotated[int, Range(1), Research] = 3
    """A mask may be a negative of an unlabelled one only outside its top-k classes."""
    bank_size: Count = 512
    """Mask prototypes stored per class. 0 switches the memory bank off."""
    bank_per_image: Annotated[int, Range(1), Research] = 4
    """Largest number of prototypes that one image adds to one class."""

    def __post_init__(self):
        check_knobs(self)


@dataclass(frozen=True)
class LossConfig:
    """L = L_seg + contrast_weight * ramp * (instance_share * L_ins + (1 - instance_share) * L_cls)."""

    temperature: Annotated[float, Range(0, 100, above=True), Common] = 0.1
    """Divisor of the cosine similarities. A smaller one weights the nearest negatives more."""
    contrast_weight: Annotated[float, Range(0, 1000), Common] = 0.03
    """Weight of the contrastive part. 0 is plain self-training."""
    instance_share: Annotated[float, Range(0, 1), Research] = 0.5
    """beta: intra-instance against intra-class contrast. 1 is intra-instance alone."""
    ramp: Annotated[tuple[float, float], Interval(0, 1, names=("start", "end"))] = (0.05, 0.2)
    """The contrastive part rises from 0 to 1 between these shares of num_steps."""
    projection: Literal["none", "mlp"] = "mlp"
    """none: contrast the features that the classifier reads. mlp: add a projection head, so that large
    weights do not harm rare classes."""
    embedding_dim: Annotated[int, Range(2, 4096), Research] = 256
    """Size of the embedding when projection is mlp."""
    thresholds: Literal["class_adaptive", "paper_like"] = "class_adaptive"
    """Weights of L_seg: per-class thresholds, or one share of confident pixels per image."""
    confidence: Share = 0.968
    """paper_like: a pixel is confident above this teacher probability."""
    class_quantile: Annotated[float, Range(0, 1, above=True)] = 0.5
    """class_adaptive: share of each class's pixels that are kept. 1 keeps all."""
    confidence_cap: Share = 0.9
    """class_adaptive: no class needs more than this confidence."""
    label_space: Annotated[Literal["pseudo_labels", "entropy"], Research] = "pseudo_labels"
    """L_seg: cross entropy with pseudo-labels, or the student's own entropy (TENT's loss)."""
    mask_vote: Literal["none", "majority", "pooled"] = "pooled"
    """Masks in label space: each mask's majority class, or pixel and mask evidence pooled."""
    vote_weight: Share = 0.5
    """pooled: share of the mask's evidence against the pixel's own."""
    vote_min_purity: Annotated[float, Range(0, 1), Research] = 0.0
    """A mask votes for its pixels only if this share of them already has its class."""
    prior_power: Share = 0.25
    """Teacher probabilities are divided by their running class share to this power."""
    source_vote: Annotated[float, Range(0, 1), Research] = 0.0
    """Weight of the source model's own opinion in the pseudo-labels, against the teacher's. The source
    model sees rare classes that the teacher may lose. 0 asks the teacher alone, and saves a forward
    pass in every step."""
    concept_weight: Annotated[float, Range(0, 10)] = 0.5
    """Weight of the masks with classes that masks.concepts gives, in the evidence of the vote. Without
    them it has no effect."""
    neighbour_weight: Annotated[float, Range(0, 10)] | None = None
    """pooled: weight of the opinion of the masks that are most like a mask in other images, against the
    mask's own evidence. 0 asks no neighbours. None: 2, or 0 where masks would be compared by embeddings
    that they do not have."""
    neighbour_space: Annotated[
        Literal["geometry", "features", "both", "learned", "sam", "random"], Research
    ] = "sam"
    """What masks are compared by: place and size, the teacher's features, both, an embedding of both
    that is learned without class labels, or SAM's embedding (masks.embeddings). random is a control: the
    neighbours have nothing in common with the mask."""
    neighbour_pooling: Annotated[Literal["sum", "mean"], Research] = "sum"
    """sum: own + weight * opinion. Masks whose neighbours agree gain confidence, and those that their
    neighbours overrule can pass the thresholds. mean: (own + weight * opinion) / (1 + weight), on the
    scale of own evidence."""
    neighbour_pixels: Annotated[Literal["all", "agreeing"], Research] = "agreeing"
    """Pixels that neighbours speak for: all of the mask, or those whose own class is that of the mask's
    own evidence. The others probably belong to another object, of which the neighbours know nothing."""
    metric_weight: Annotated[float, Range(0, 1000), Research] = 0.1
    """learned: weight of the loss that trains the embedding. It pulls two views of a mask together, and
    pushes masks of other images away whose neighbours are of other classes."""
    rule_out_weight: Annotated[float, Range(0, 1000), Research] = 0.0
    """Weight of the rule-out contrast of pixels below the thresholds. Their mask's likeliest classes
    attract them together, and all other classes repel them. 0 switches it off."""
    rule_out_top_k: Annotated[int, Range(1), Research] = 3
    """Classes of a mask that the rule-out contrast leaves possible."""
    rule_out_by: Annotated[Literal["mask", "pixel"], Research] = "mask"
    """Whose likeliest classes those are: the mask's, or each pixel's own, which needs no masks."""
    output_weight: Annotated[float, Range(0, 1000), Research] = 0.0
    """Weight of the contrast of outputs: the student's mean probabilities over a mask against the
    teacher's over the same mask and over masks of other classes. 0 switches it off."""
    ring_weight: Annotated[float, Range(0, 1000), Research] = 0.0
    """Weight of the contrast at boundaries: the inside of a mask against cells of other classes just
    around it. 0 switches it off."""
    teacher_scales: Annotated[tuple[float, ...], Zooms(0.1, 4)] = (1.0,)
    """Zooms of the teacher's views for pseudo-labels. Its probabilities are the mean over them."""
    teacher_flip: bool = False
    """The teacher also sees the mirror image of each view."""
    region_source: Annotated[Literal["masks", "pseudo_labels"], Research] = "masks"
    """Regions of the contrast: masks, or an image's confident pixels of a class."""

    def __post_init__(self):
        check_knobs(self)

    @property
    def asks_neighbours(self) -> bool:
        """Whether masks ask their neighbours. Not where `neighbour_weight` is still open."""
        return bool(self.neighbour_weight)

    @property
    def compares_embeddings(self) -> bool:
        """Whether masks ask neighbours that SAM's embedding finds, so that they need embeddings."""
        return self.asks_neighbours and self.neighbour_space == "sam"

    @property
    def has_use_for_neighbours(self) -> bool:
        """Whether a label or a loss uses the opinion of a mask's neighbours."""
        votes = self.mask_vote == "pooled" and self.vote_weight > 0
        rules_out = self.rule_out_weight > 0 and self.rule_out_by == "mask"
        learns = self.neighbour_space == "learned" and self.metric_weight > 0
        return votes or rules_out or learns

    def weight_of_neighbours(self, masks_have_embeddings: bool) -> float:
        """Return `neighbour_weight`, chosen by the masks where it is not set."""
        if self.neighbour_weight is not None:
            return self.neighbour_weight
        are_comparable = self.neighbour_space != "sam" or masks_have_embeddings
        return NEIGHBOUR_WEIGHT if are_comparable and self.has_use_for_neighbours else 0.0


@dataclass(frozen=True)
class TrainConfig:
    """Stage 2: the teacher-student training."""

    num_steps: Annotated[int, Range(1), Common] = 4000
    """Optimiser steps."""
    batch_size: Annotated[int, Range(1), Common] = 4
    """Images per step over all workers together."""
    accumulate: PositiveInt = 1
    """Parts into which a worker's share of the batch is split. More parts need less memory for the same
    batch. Each part's losses are means over itself."""
    ema_momentum: Annotated[float, Range(0, 1), Common] = 0.999
    """Momentum of the teacher. teacher = ema_momentum * teacher + (1 - ema_momentum) * student, after
    every step."""
    batch_norm: Literal["auto", "adapt", "target", "frozen"] = "auto"
    """Statistics of BatchNorm. auto: the mixture of source and target statistics whose predictions are
    most consistent over views of target images. frozen: those of the source. target: those of the
    target, mixed by statistics_share. All three are estimated before step 1 and then fixed. adapt: as
    target, then updated in training (the teacher's follow by ema_momentum, like its weights). On CPU
    workers adapt normalises each worker's share by itself, so results depend on the number of
    workers."""
    statistics_images: Annotated[int, Range(0), Research] = 64
    """Number of whole target images, spread evenly, that the target's statistics are estimated on. 0
    keeps those of the source."""
    statistics_share: Share = 1.0
    """With target and adapt: share of the target's statistics against the source's."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast of the networks. Losses always run in float32."""
    channels_last: bool = False
    """Memory layout of the networks. Faster on most GPUs with bf16."""
    compile: bool = False
    """torch.compile the student. The first steps take a minute or more, the rest are faster on most
    GPUs. Needs a C++ compiler on the CPU, and rounding differs."""
    evaluate_every: PositiveInt = 500
    """Steps between two evaluations on the held-out images. Each one saves a checkpoint."""
    keep: Literal["last", "best"] = "last"
    """Student of the result. last: that of the last step. best: that of the evaluation with the best
    label-free score on the held-out images, collapsed ones left out. Trials of a search keep the last,
    its final training follows this knob."""
    source_share: Share | None = None
    """Share of the source model in the student of the result. Its weights and statistics are
    (1 - source_share) * student + source_share * source. The source model remembers rare classes that a
    student forgets. 0 is the student alone. None: 8 / (8 + training images), at least .25: the source
    model counts as 8 images."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    pairs: PairConfig = field(default_factory=PairConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self):
        check_knobs(self)

    def share_of_source(self, num_images: int) -> float:
        """Return `source_share`, chosen by the number of training images where it is not set.

        Few images teach little beyond themselves, and nothing tells a student that they harmed: too few
        are held out. So the fewer they are, the nearer the student stays to the source model.
        """
        if self.source_share is not None:
            return self.source_share
        return max(LEAST_SOURCE_SHARE, SOURCE_MODEL_IMAGES / (SOURCE_MODEL_IMAGES + num_images))


@dataclass(frozen=True)
class PretrainConfig:
    """Training of a source model on labelled images, for users who have none yet."""

    network: Annotated[str, Common] = "compact"
    """Name of a network in sfss_ray.models."""
    num_steps: Annotated[int, Range(1), Common] = 4000
    """Optimiser steps."""
    batch_size: Annotated[int, Range(1), Common] = 8
    """Images per step over all workers together."""
    accumulate: PositiveInt = 1
    """Parts into which a worker's share of the batch is split. More parts need less memory for the same
    batch. Each part's losses are means over itself."""
    checkpoint_every: PositiveInt = 500
    """Steps between two checkpoints."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast of the network."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-3))
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self):
        check_knobs(self)
        if self.augment.class_mix > 0 or self.optim.trainable != "all":
            raise ConfigError(
                "pretrain.augment.class_mix and pretrain.optim.trainable have no effect on a"
                " pretraining: leave them at 0 and all"
            )
