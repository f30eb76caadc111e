"""The rows of the ablation: the knobs by which each method differs from plain self-training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sfss_ray.config.presets import find_preset
from sfss_ray.config.space import DEFAULT_SPACE, parse_space

CONTRAST = {
    "train.loss.contrast_weight": 0.03,
    "train.loss.temperature": 0.1,
    "train.loss.projection": "mlp",
}
CONTRAST_KNOBS = (
    "train.pairs.",
    "train.loss.temperature",
    "train.loss.instance_share",
    "train.loss.ramp",
    "train.loss.projection",
    "train.loss.embedding_dim",
    "train.loss.region_source",
)
"""Knobs without effect where contrast_weight is 0."""
NO_BANK = {"train.pairs.bank_size": 0}
VOTE = {
    "train.loss.mask_vote": "pooled",
    "train.loss.vote_weight": 0.5,
    "train.loss.prior_power": 0.25,
}
USER_REGIONS = "felzenszwalb"  # regions that need no SAM weights


@dataclass(frozen=True)
class Row:
    """A method: its name in tables, its source of masks, and its knobs."""

    key: str
    name: str
    regions: str = ""
    knobs: dict[str, Any] = field(default_factory=dict)
    external: bool = False
    """Whether a network that learned class names elsewhere votes."""


BASELINE = Row("source_only", "source-only")
STATISTICS = Row("batch_norm", "BatchNorm statistics only")
CEILING = Row("ceiling", "trained with target labels (ceiling)")
TENT = Row(
    "tent",
    "entropy minimisation (TENT)",
    "",
    {
        "train.batch_norm": "adapt",
        "train.loss.label_space": "entropy",
        "train.optim.trainable": "norm",
        # At 1e-3, the rate of self-training on drawn streets, TENT falls to 23 mIoU.
        "train.optim.learning_rate": 2e-4,
        "train.augment.jitter_probability": 0.0,
        "train.augment.grey_probability": 0.0,
        "train.augment.blur_probability": 0.0,
    },
)
WITHOUT_TEACHER = (BASELINE, STATISTICS, TENT, CEILING)
SELF_TRAINING = Row("self_training", "self-training (A1)")
_LABEL_SPACE = (
    # The prior correction alone: the part of the pooled vote that needs no masks.
    Row("prior", "A1 + prior correction .25", "", {"train.loss.prior_power": 0.25}),
    Row("strong_prior", "A1 + prior correction .5", "", {"train.loss.prior_power": 0.5}),
    Row(
        "majority_vote",
        "A1 + majority vote in masks",
        USER_REGIONS,
        {"train.loss.mask_vote": "majority"},
    ),
    Row("pooled_vote", "A1 + pooled vote", USER_REGIONS, VOTE),
)
_CONTRAST = (
    Row(
        "pixel_contrast",
        "A1 + contrast without masks",
        "",
        CONTRAST | NO_BANK | {"train.loss.region_source": "pseudo_labels"},
    ),
    Row(
        "instance",
        "A1 + L_ins",
        USER_REGIONS,
        CONTRAST | NO_BANK | {"train.loss.instance_share": 1.0},
    ),
    Row(
        "class",
        "A1 + L_cls",
        USER_REGIONS,
        CONTRAST | NO_BANK | {"train.loss.instance_share": 0.0},
    ),
    Row("both", "A1 + L_ins + L_cls", USER_REGIONS, CONTRAST | NO_BANK),
    Row("bank", "A1 + L_ins + L_cls + bank", USER_REGIONS, CONTRAST),
    Row("bank_ground_truth", "A1 + L_ins + L_cls + bank", "ground_truth", CONTRAST),
)
_FULL_NAME = "full method (contrast + bank + pooled vote)"
_FULL = (
    Row("full_felzenszwalb", _FULL_NAME, "felzenszwalb", CONTRAST | VOTE),
    Row("full_small_sam", _FULL_NAME, "small_sam", CONTRAST | VOTE),
    Row("full_random", _FULL_NAME, "random", CONTRAST | VOTE),
    Row("full_ground_truth", _FULL_NAME, "ground_truth", CONTRAST | VOTE),
)
ROWS = (BASELINE, STATISTICS, TENT, SELF_TRAINING, *_LABEL_SPACE, *_CONTRAST, *_FULL, CEILING)


def _alone(power: float) -> dict[str, Any]:
    """Return a pooled vote in which the mask decides alone, with one prior power for all regions."""
    return VOTE | {"train.loss.vote_weight": 1.0, "train.loss.prior_power": power}


_PARTS_OF_THE_VOTE = tuple(
    Row(
        f"vote_prior_{power}_{regions}",
        f"A1 + vote of weight 1, prior {power}",
        regions,
        _alone(power),
    )
    for power in (0.0, 0.5)
    for regions in ("small_sam", "ground_truth")
)
# With mirrored images these are six views.
_ZOOMS = {"train.loss.teacher_scales": [0.75, 1.0, 1.5]}
_ZOOMED = (
    Row("zooms", "self-training (A1), zooms", "", _ZOOMS),
    *(
        Row(f"zooms_{row.key}", f"{row.name}, zooms", row.regions, row.knobs | _ZOOMS)
        for row in _FULL
        if row.regions != "random"
    ),
)
_SAM, _TRUE = (
    next(row for row in _FULL if row.regions == r) for r in ("small_sam", "ground_truth")
)
_LONG = {"train.num_steps": 1000, "train.evaluate_every": 500}
_ADAPTING = ("adapting", "BatchNorm statistics run on", {"train.batch_norm": "adapt"})
_OTHER_WAYS = tuple(
    Row(f"{key}_{row.key}", f"{row.name}, {what}", row.regions, row.knobs | knobs)
    for row, key, what, knobs in (
        (_SAM, "quick_teacher", "teacher's momentum .99", {"train.ema_momentum": 0.99}),
        (_SAM, "class_mix", "class-mix .5", {"train.augment.class_mix": 0.5}),
        (_SAM, "long", "twice the steps", _LONG),
        (_SAM, *_ADAPTING),
        (_TRUE, *_ADAPTING),
    )
)
_MEAN, _SUM = ({"train.loss.neighbour_pooling": pooling} for pooling in ("mean", "sum"))
_AGREEING = _SUM | {"train.loss.neighbour_pixels": "agreeing"}
_NEIGHBOURS = {
    "train.loss.neighbour_weight": 1.0,
    "train.loss.neighbour_space": "geometry",
    "train.loss.neighbour_pixels": "all",
} | _MEAN
_BY_FEATURES = _NEIGHBOURS | {"train.loss.neighbour_space": "features"}
_LEARNED = _NEIGHBOURS | {"train.loss.neighbour_space": "learned"}
_BY_BOTH = _NEIGHBOURS | {"train.loss.neighbour_space": "both"}
_BY_CHANCE = _NEIGHBOURS | {"train.loss.neighbour_space": "random"}
_BY_SAM = _NEIGHBOURS | {"train.loss.neighbour_space": "sam"}
_BY_SAM_TWICE = _BY_SAM | {"train.loss.neighbour_weight": 2.0}
_RULE_OUT = {"train.loss.rule_out_weight": 1.0}
_BY_PIXEL = _RULE_OUT | {"train.loss.rule_out_by": "pixel"}
_OUTPUT = {"train.loss.output_weight": 0.1}
_RINGS = {"train.loss.ring_weight": 0.1}


def _news_by_sam() -> list[tuple[str, str, dict[str, Any]]]:
    """Return key, name and knobs of the rows whose masks are compared by SAM's embedding."""
    name, twice = "vote + neighbours by SAM's embedding", {"train.loss.neighbour_weight": 2.0}
    four_times = {"train.loss.neighbour_weight": 4.0}
    chance = "vote + neighbours by chance, sum, weight 2"
    summed, agreeing = _BY_SAM_TWICE | _SUM, _BY_SAM_TWICE | _AGREEING
    return [
        ("neighbours_by_sam", name, _BY_SAM),
        ("sum_by_sam", f"{name}, sum", _BY_SAM | _SUM),
        ("sum_by_sam_twice", f"{name}, sum, weight 2", summed),
        ("sum_by_chance_twice", f"{chance} (control)", _BY_CHANCE | _SUM | twice),
        (
            "agreeing_by_chance_twice",
            f"{chance}, agreeing pixels (control)",
            _BY_CHANCE | _AGREEING | twice,
        ),
        ("agreeing", f"{name}, sum, agreeing pixels", _BY_SAM | _AGREEING),
        ("agreeing_twice", f"{name}, sum, weight 2, agreeing pixels", agreeing),
        ("sum_by_sam_contrast", f"{name}, sum, weight 2, contrast", summed | CONTRAST),
        ("sum_by_sam_zooms", f"{name}, sum, weight 2, zooms", summed | _ZOOMS),
        ("agreeing_four_times", f"{name}, sum, weight 4, agreeing pixels", agreeing | four_times),
        ("full_neighbours", f"full method + {name.removeprefix('vote + ')}", agreeing | CONTRAST),
        ("agreeing_rule_out", f"{name}, sum, weight 2, agreeing, rule-out", agreeing | _RULE_OUT),
        (
            "agreeing_long",
            f"{name}, sum, weight 2, agreeing pixels, twice the steps",
            agreeing | _LONG,
        ),
    ]


def _news(regions: str) -> tuple[Row, ...]:
    """Return the designs in which masks add what the teacher lacks, each with its control."""
    designs: list[tuple[str, str, dict[str, Any]]] = [
        ("vote", "A1 + pooled vote", {}),
        ("full", _FULL_NAME, CONTRAST),
        ("neighbours", "vote + neighbours", _NEIGHBOURS),
        ("neighbours_by_features", "vote + neighbours by features", _BY_FEATURES),
        ("neighbours_by_both", "vote + neighbours by geometry and features", _BY_BOTH),
        ("neighbours_by_chance", "vote + neighbours by chance (control)", _BY_CHANCE),
        ("neighbours_learned", "vote + neighbours in a learned space", _LEARNED),
        ("rule_out", "vote + rule-out by mask", _RULE_OUT),
        ("rule_out_pixel", "vote + rule-out by pixel (control)", _BY_PIXEL),
        ("neighbours_rule_out", "vote + neighbours + rule-out", _NEIGHBOURS | _RULE_OUT),
        ("output", "vote + contrast of outputs", _OUTPUT),
        ("rings", "vote + contrast at boundaries", _RINGS),
    ]
    if regions != "random":
        designs += _news_by_sam()
    rows = [Row(f"{key}_{regions}", name, regions, VOTE | knobs) for key, name, knobs in designs]
    if regions == USER_REGIONS:
        rows[0] = _LABEL_SPACE[-1]  # the same vote, so its runs serve both tables
    return tuple(rows)


# Attempts to keep a class that the full method forgets: all defaults but one setting.
_KEEPING = tuple(
    Row(f"{key}_full", f"full method, {name}", USER_REGIONS, CONTRAST | VOTE | knobs)
    for key, name, knobs in (
        ("source_statistics", "BatchNorm statistics of the source", {"train.batch_norm": "frozen"}),
        (
            "quarter_statistics",
            "a quarter of the target's statistics",
            {"train.batch_norm": "target", "train.statistics_share": 0.25},
        ),
        ("no_vote", "without the vote", {"train.loss.mask_vote": "none"}),
        ("strong_prior", "prior correction .5", {"train.loss.prior_power": 0.5}),
        ("full_prior", "prior correction 1", {"train.loss.prior_power": 1.0}),
        ("source_vote", "vote of the source model .25", {"train.loss.source_vote": 0.25}),
        ("half_source_vote", "vote of the source model .5", {"train.loss.source_vote": 0.5}),
    )
)

# The full method with each searched setting at both ends of its range, the others as always.
_RANGES = tuple(
    Row(
        f"{dimension.name.rsplit('.', 1)[-1]}_{value:g}",
        f"full method, {dimension.name.removeprefix('train.')} {value:g}",
        USER_REGIONS,
        CONTRAST | VOTE | {dimension.name: value},
    )
    for dimension in parse_space(DEFAULT_SPACE)
    for value in dimension.ends
)
# A search varies 1 - momentum from a tenth to ten times a config's own: these ends are those of .99.
_QUICK_TEACHER = tuple(
    Row(
        f"ema_momentum_{momentum:g}",
        f"full method, ema_momentum {momentum:g}",
        USER_REGIONS,
        CONTRAST | VOTE | {"train.ema_momentum": momentum},
    )
    for momentum in (0.9, 0.999)
)
# At the default weight of the contrast its temperature cannot matter, but a search varies both.
_HEAVY = "train.loss.contrast_weight"
_HEAVY_RANGES = tuple(
    Row(
        f"{row.key}_heavy",
        f"{row.name}, contrast_weight 2",
        USER_REGIONS,
        row.knobs | {_HEAVY: next(d.high for d in parse_space(DEFAULT_SPACE) if d.name == _HEAVY)},
    )
    for row in _RANGES
    if row.key.startswith("temperature")
)
_PAPER = Row("paper_like", "preset paper_like", "small_sam", find_preset("paper_like"))
TABLES = {
    "ablation": ROWS,
    # Designs in which masks add what the teacher lacks.
    "news": (
        BASELINE,
        SELF_TRAINING,
        *(
            row
            for regions in ("felzenszwalb", "small_sam", "random", "ground_truth")
            for row in _news(regions)
        ),
        CEILING,
    ),
    # Attempts to keep a class that the full method forgets.
    "keeping": (BASELINE, STATISTICS, _FULL[0], *_KEEPING),
    # What a search of the default space can gain or lose.
    "ranges": (BASELINE, _FULL[0], *_RANGES, *_HEAVY_RANGES),
    # The same of the momentum for pairs whose own is .99: CamVid, day to dusk.
    "quick_ranges": (BASELINE, _FULL[0], *_QUICK_TEACHER),
    # Attempts to gain more from masks: the parts of the vote without the contrast, a teacher with
    # several zooms or a lower momentum, class-mix, more steps, and BatchNorm statistics that adapt.
    # The last row follows the abstract of the paper as closely as it allows.
    "remedies": (
        BASELINE,
        SELF_TRAINING,
        *_LABEL_SPACE[:2],
        *_PARTS_OF_THE_VOTE,
        *_ZOOMED,
        *_OTHER_WAYS,
        _PAPER,
        CEILING,
    ),
}
