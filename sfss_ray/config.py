"""Every knob, once: a tree of frozen dataclasses whose ranges are checked when they are made.

Paths are arguments of functions, never config, so that a config can be moved between machines.
`override` is the one way to change a value by name: recipes, saved JSON, the search and the tests
all go through it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sfss_ray.errors import ConfigError


def _require(owner: Any, name: str, low: float, high: float = math.inf, *, above: bool = False):
    """Raise ConfigError unless low <= value <= high (low < value with `above`)."""
    value = getattr(owner, name)
    whole = owner.__dataclass_fields__[name].type == "int"  # annotations are kept as text
    if _is_number(value, whole) and (value > low if above else value >= low) and value <= high:
        return
    bracket = "(" if above else "["
    limit = "inf)" if math.isinf(high) else f"{high:g}]"
    kind = "a whole number in " if whole else ""
    raise ConfigError(
        f"{name} is {value!r}: allowed is {kind}{bracket}{low:g}, {limit}; choose a value there"
    )


def _is_number(value: object, whole: bool = False) -> bool:
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(pair: Any, whole: bool = False) -> bool:
    """Whether it is a pair of numbers."""
    is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
    return is_pair and all(_is_number(value, whole) for value in pair)


def _require_one_of(owner: object, name: str, allowed: tuple[str, ...]):
    value = getattr(owner, name)
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}: allowed is one of {', '.join(allowed)}")


def _require_range(owner: object, name: str, low: float, high: float = math.inf):
    pair = getattr(owner, name)
    if _are_numbers(pair) and low < pair[0] <= pair[1] <= high:
        return
    raise ConfigError(
        f"{name} is {pair!r}: allowed is a pair (smallest, largest) with {low:g} < smallest <= largest"
        f" <= {high:g}"
    )


@dataclass(frozen=True)
class MaskConfig:
    """Stage 1: how regions are found in an image. Names of the generator's knobs are SAM's own."""

    regions: Literal["auto", "sam", "small_sam", "felzenszwalb"] = "auto"
    """Region source; auto: sam when a SAM checkpoint is given, else felzenszwalb (no weights)."""
    points_per_side: int = 32
    """Prompts per image side, so points_per_side**2 prompts; more finds smaller things, costs time."""
    points_per_batch: int = 64
    """Upper bound of prompts decoded at once; more needs more memory."""
    pred_iou_thresh: float = 0.88
    """Masks whose IoU the model itself predicts below this are dropped; 0 to 1."""
    stability_score_thresh: float = 0.95
    """Masks that change more than this allows when the cut-off moves are dropped; 0 to 1."""
    stability_score_offset: float = 1.0
    """How far the cut-off is moved for the stability score, in logits."""
    box_nms_thresh: float = 0.7
    """Of masks whose boxes overlap by more than this IoU only the best is kept."""
    crop_n_layers: int = 0
    """Layers of zoomed crops that are searched too; layer i has 4**i crops."""
    min_mask_region_area: int = 0
    """Holes and islands smaller than this many pixels are removed (0: none)."""
    felzenszwalb_scale: float = 300.0
    """Felzenszwalb regions only: larger means larger regions."""
    felzenszwalb_min_size: int = 200
    """Felzenszwalb regions only: smallest region, in pixels of a 480x360 image (scaled to others)."""
    images_per_shard: int = 32
    """Images per Parquet file; also what a killed worker may have to redo."""

    def __post_init__(self):
        _require_one_of(self, "regions", ("auto", "sam", "small_sam", "felzenszwalb"))
        _require(self, "points_per_side", 1, 256)
        _require(self, "points_per_batch", 1, 4096)
        _require(self, "pred_iou_thresh", 0, 1)
        _require(self, "stability_score_thresh", 0, 1)
        _require(self, "stability_score_offset", 0, above=True)
        _require(self, "box_nms_thresh", 0, 1)
        _require(self, "crop_n_layers", 0, 4)
        _require(self, "min_mask_region_area", 0)
        _require(self, "felzenszwalb_scale", 0, above=True)
        _require(self, "felzenszwalb_min_size", 1)
        _require(self, "images_per_shard", 1, 4096)


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
    poly_power: float = 0.9
    """Rate falls as (1 - progress)**poly_power; 0 keeps it constant."""
    max_grad_norm: float = 5.0
    """Gradients are scaled down to this L2 norm."""

    def __post_init__(self):
        _require_one_of(self, "optimizer", ("adamw", "sgd"))
        _require(self, "learning_rate", 0, 10, above=True)
        _require(self, "head_multiplier", 0, 1000, above=True)
        _require(self, "weight_decay", 0, 1)
        _require(self, "warmup_share", 0, 1)
        _require(self, "poly_power", 0, 10)
        _require(self, "max_grad_norm", 0, above=True)


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

    def __post_init__(self):
        if not _are_numbers(self.crop_size, whole=True) or min(self.crop_size) < 32:
            raise ConfigError(
                f"crop_size is {self.crop_size!r}: allowed is (height, width), each 32 or more pixels"
            )
        _require_range(self, "scale_range", 0)
        _require(self, "jitter", 0, 1)
        _require(self, "hue", 0, 0.5)
        for name in ("jitter_probability", "grey_probability", "blur_probability"):
            _require(self, name, 0, 1)


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
        _require(self, "min_purity", 0, 1)
        _require(self, "min_cells", 1)
        _require(self, "merged_share", 0, 0.5, above=True)
        _require(self, "merged_confidence", 0, 1)
        _require(self, "cell_share", 0.5, 1, above=True)
        for name in ("anchors_per_image", "anchors_per_mask", "positives", "negatives"):
            _require(self, name, 1)
        _require(self, "unlabelled_top_k", 1)
        _require(self, "bank_size", 0)
        _require(self, "bank_per_image", 1)


@dataclass(frozen=True)
class LossConfig:
    """L = L_seg + contrast_weight * ramp * (instance_share * L_ins + (1 - instance_share) * L_cls)."""

    temperature: float = 0.1
    """Divides the cosine similarities; smaller looks harder at the nearest negatives. Above 0."""
    contrast_weight: float = 0.1
    """Weight of the contrastive part; 0 is plain self-training."""
    instance_share: float = 0.5
    """beta: intra-instance against intra-class contrast; 1 is intra-instance alone."""
    ramp: tuple[float, float] = (0.05, 0.2)
    """The contrastive part rises from 0 to 1 between these shares of num_steps."""
    projection: Literal["none", "mlp"] = "none"
    """none: contrast the features the classifier reads; mlp: a new projection head in between."""
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

    def __post_init__(self):
        _require(self, "temperature", 0, 100, above=True)
        _require(self, "contrast_weight", 0, 1000)
        _require(self, "instance_share", 0, 1)
        low, high = self.ramp if _are_numbers(self.ramp) else (1, 0)
        if not 0 <= low <= high <= 1:
            raise ConfigError(
                f"ramp is {self.ramp!r}: allowed is (start, end), 0 <= start <= end <= 1"
            )
        _require_one_of(self, "projection", ("none", "mlp"))
        _require(self, "embedding_dim", 2, 4096)
        _require_one_of(self, "thresholds", ("class_adaptive", "paper_like"))
        _require(self, "confidence", 0, 1)
        _require(self, "class_quantile", 0, 1, above=True)
        _require(self, "confidence_cap", 0, 1)


@dataclass(frozen=True)
class TrainConfig:
    """Stage 2: the teacher-student loop."""

    num_steps: int = 4000
    """Optimiser steps."""
    batch_size: int = 4
    """Images per step over all workers together."""
    ema_momentum: float = 0.999
    """teacher = ema_momentum * teacher + (1 - ema_momentum) * student, after every step; 0 to 1."""
    batch_norm: Literal["adapt", "frozen"] = "adapt"
    """adapt: BatchNorm sees target batches (teacher copies the statistics); frozen: the source's."""
    statistics_steps: int = 20
    """With adapt: batches that re-estimate the statistics on the target before step 1."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast of the networks; losses always run in float32."""
    channels_last: bool = False
    """Memory layout of the networks; faster on most GPUs with bf16."""
    evaluate_every: int = 500
    """Steps between two looks at the held-out images (and checkpoints)."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    pairs: PairConfig = field(default_factory=PairConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self):
        _require(self, "num_steps", 1)
        _require(self, "batch_size", 1)
        _require(self, "ema_momentum", 0, 1)
        _require_one_of(self, "batch_norm", ("adapt", "frozen"))
        _require(self, "statistics_steps", 0)
        _require_one_of(self, "precision", ("fp32", "bf16"))
        _require(self, "evaluate_every", 1)


@dataclass(frozen=True)
class PretrainConfig:
    """Training of a source model on labelled images, for people who have none yet."""

    network: str = "compact"
    """Name of a network in sfss_ray.models."""
    num_steps: int = 4000
    """Optimiser steps."""
    batch_size: int = 8
    """Images per step over all workers together."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast of the network."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-3))
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self):
        _require(self, "num_steps", 1)
        _require(self, "batch_size", 1)
        _require(self, "checkpoint_every", 1)
        _require_one_of(self, "precision", ("fp32", "bf16"))


@dataclass(frozen=True)
class EvaluationConfig:
    """How a network is scored and where its label-free scores look."""

    batch_size: int = 1
    """Images per forward pass (images of one size only are put together)."""
    max_size: int = 2048
    """Longer images are scaled down to this many pixels on their longest side for the network;
    logits are scaled back, so that labels are always compared at their own size."""
    held_out_share: float = 0.15
    """Share of the target images that training never sees: label-free scores look there."""
    held_out_max: int = 64
    """Most images held out."""
    pictures: int = 6
    """Images shown in the report."""

    def __post_init__(self):
        _require(self, "batch_size", 1)
        _require(self, "max_size", 32)
        _require(self, "held_out_share", 0, 0.5)
        _require(self, "held_out_max", 0)
        _require(self, "pictures", 0, 100)


@dataclass(frozen=True)
class TuneConfig:
    """Stage 3: the joint search of temperature, contrast_weight and ema_momentum."""

    num_trials: int = 8
    """Trained students; the first uses the config's own values."""
    temperature_range: tuple[float, float] = (0.03, 0.7)
    """Searched log-uniformly."""
    contrast_weight_range: tuple[float, float] = (0.01, 2.0)
    """Searched log-uniformly."""
    ema_gap_range: tuple[float, float] = (1e-4, 1e-2)
    """1 - ema_momentum, searched log-uniformly."""
    early_stopping: bool = True
    """ASHA: of one-worker trials past the ramp, the weaker part is stopped at each look."""
    reduction_factor: int = 3
    """ASHA keeps one of so many trials at each look."""
    score: Literal["auto", "mask_information", "val_miou"] = "auto"
    """auto: val_miou (an oracle: needs target labels) when labels are given, else mask_information."""

    def __post_init__(self):
        _require(self, "num_trials", 1)
        for name in ("temperature_range", "contrast_weight_range"):
            _require_range(self, name, 0)
        _require_range(self, "ema_gap_range", 0, 1)
        _require(self, "reduction_factor", 2)
        _require_one_of(self, "score", ("auto", "mask_information", "val_miou"))


@dataclass(frozen=True)
class ComputeConfig:
    """Where it runs. Changes speed, never results (but for rounding)."""

    address: str = "auto"
    """Ray address: auto joins the cluster of RAY_ADDRESS or a job, else starts one here; local always
    starts one here; HOST:PORT must be reachable."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA when this machine has it."""
    num_workers: int = 1
    """Data-parallel training workers (one GPU each on CUDA)."""
    cpus_per_worker: float = 1.0
    """CPUs reserved per training worker; also its number of compute threads."""
    mask_actors: int = 0
    """Processes that generate masks; 0: one per GPU, or one per CPU."""
    concurrent_trials: int = 0
    """Trials at the same time; 0: as many as fit."""
    loader_processes: int = 0
    """Processes per training worker that read and augment images; 2 to 8 keep a GPU busy."""
    max_failures: int = 2
    """Times a training run is restarted from its last checkpoint after a worker died."""

    def __post_init__(self):
        _require_one_of(self, "device", ("auto", "cpu", "cuda"))
        _require(self, "num_workers", 1)
        _require(self, "cpus_per_worker", 0, above=True)
        _require(self, "mask_actors", 0)
        _require(self, "concurrent_trials", 0)
        _require(self, "loader_processes", 0)
        _require(self, "max_failures", -1)


@dataclass(frozen=True)
class Config:
    """The whole tree: what is computed (masks, train, ...) and where (compute)."""

    seed: int = 0
    """Seeds data order, augmentation, pair sampling and the search."""
    masks: MaskConfig = field(default_factory=MaskConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self):
        _require(self, "seed", 0, 2**31 - 1)


def override(config: Config, values: dict[str, Any]) -> Config:
    """Return a copy of `config` with some values changed by dotted name.

    `override(config, {"train.loss.temperature": 0.2})`. Raises ConfigError for a name that does not
    exist (the known ones are listed) and for a value out of range or of another type.
    """
    for name, value in values.items():
        config = _replace(config, name.split("."), value, name)
    return config


def _replace(node: Any, path: list[str], value: Any, full_name: str) -> Any:
    known = [f.name for f in getattr(node, "__dataclass_fields__", {}).values()]
    if path[0] not in known:
        where = full_name.removesuffix(".".join(path)).rstrip(".") or "the config"
        raise ConfigError(
            f"unknown setting {full_name!r}: {where} knows {', '.join(known) or 'no parts'}"
        )
    current = getattr(node, path[0])
    if len(path) > 1:
        new = _replace(current, path[1:], value, full_name)
    else:
        new = _coerce(current, value, full_name)
    return dataclasses.replace(node, **{path[0]: new})


def _coerce(current: Any, value: Any, name: str) -> Any:
    """Bring a JSON value to the type of the current one, or refuse it."""
    if isinstance(current, bool) or isinstance(value, bool):
        fits = isinstance(current, bool) and isinstance(value, bool)
    elif isinstance(current, float):
        fits, value = isinstance(value, (int, float)), value
        value = float(value) if fits else value
    elif isinstance(current, tuple):
        fits = isinstance(value, (tuple, list)) and len(value) == len(current)
        parts = zip(current, value, strict=True) if fits else ()
        value = tuple(_coerce(c, v, name) for c, v in parts) if fits else value
    else:
        fits = isinstance(value, type(current))
    if not fits:
        raise ConfigError(f"{name} is {value!r}: allowed is a {type(current).__name__}")
    return value


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of every knob; `override(Config(), flatten(c)) == c`."""
    flat: dict[str, Any] = {}
    for knob in dataclasses.fields(config):
        value = getattr(config, knob.name)
        name = f"{prefix}{knob.name}"
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """'name: old -> new' for every flattened knob that differs."""
    names = sorted(old.keys() | new.keys())
    absent = "absent"
    return [
        f"{n}: {old.get(n, absent)} -> {new.get(n, absent)}"
        for n in names
        if old.get(n) != new.get(n)
    ]


def load_config(path: Path | str, base: Config | None = None) -> Config:
    """Read a config written as JSON: flat dotted names, as in `best_config.json` of a search."""
    try:
        values = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read config {str(path)!r} ({error}): give a JSON file of dotted names, such as"
            ' {"train.loss.temperature": 0.1}'
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"config {str(path)!r} is a JSON {type(values).__name__}: an object is needed"
        )
    return override(base or Config(), values)
