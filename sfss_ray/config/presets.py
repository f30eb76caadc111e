"""Published settings by name: dotted names for `override`, for pretraining and adaptation.

`override(Config(), PRESETS["transformer"])`. Single knobs set over a preset win.
"""

from __future__ import annotations

from typing import Any

from sfss_ray.errors import ConfigError

_OPTIM: dict[str, dict[str, Any]] = {
    # DeepLabV2's line: SGD with momentum 0.9, the rate of AdaptSegNet and its successors, no warm-up.
    "cnn": {
        "optimizer": "sgd",
        "learning_rate": 2.5e-4,
        "head_multiplier": 10.0,
        "weight_decay": 5e-4,
        "warmup_share": 0.0,
        "warmup_steps": 0,
        "poly_power": 0.9,
    },
    # SegFormer's and DAFormer's line.
    "transformer": {
        "optimizer": "adamw",
        "learning_rate": 6e-5,
        "head_multiplier": 10.0,
        "weight_decay": 0.01,
        "warmup_share": 0.0,
        "warmup_steps": 1500,
        "poly_power": 1.0,
    },
}
_ADAPTATION: dict[str, dict[str, Any]] = {
    # Published: 9 to 20 thousand steps of 4 to 6 crops, momentum 0.99 to 0.9999.
    "cnn": {
        "num_steps": 15000,
        "evaluate_every": 2500,
        "batch_size": 4,
        "ema_momentum": 0.999,
        "augment.crop_size": [256, 512],
    },
    "transformer": {
        "num_steps": 40000,
        "evaluate_every": 5000,
        "batch_size": 2,
        "ema_momentum": 0.999,
        "augment.crop_size": [512, 512],
    },
}
# Both lines show the network images of 1024x512, and zoom them by 0.75 to 1.25 in training.
_IMAGE_SIZE: dict[str, Any] = {
    "train.augment.scale_range": [0.75, 1.25],
    "train.augment.max_size": 1024,
    "evaluation.max_size": 1024,
}

# What masks and pseudo-labels are used for, independent of network and optimiser.
_METHODS: dict[str, dict[str, Any]] = {
    # As close to the abstract of Ren et al. 2024 as it can be read: pseudo-labels weighted by an
    # image's share of confident pixels, contrast in an embedding of its own, from masks alone.
    "paper_like": {
        "train.batch_norm": "adapt",
        "train.loss.thresholds": "paper_like",
        "train.loss.projection": "mlp",
        "train.loss.contrast_weight": 0.1,
        "train.loss.mask_vote": "none",
        "train.loss.prior_power": 0.0,
    },
    # The defaults, by name: our best with masks that need no labels (experiments/README.md).
    "recommended": {
        "train.batch_norm": "auto",
        "train.loss.thresholds": "class_adaptive",
        "train.loss.projection": "mlp",
        "train.loss.contrast_weight": 0.03,
        "train.loss.mask_vote": "pooled",
        "train.loss.vote_weight": 0.5,
        "train.loss.prior_power": 0.25,
    },
}

NETWORK_PRESETS = tuple(_OPTIM)
"""Presets of optimiser, schedule and image size. The others are presets of the method."""

PRESETS: dict[str, dict[str, Any]] = {
    name: {
        f"{stage}.optim.{knob}": value
        for stage in ("pretrain", "train")
        for knob, value in optim.items()
    }
    | {f"train.{knob}": value for knob, value in _ADAPTATION[name].items()}
    | _IMAGE_SIZE
    for name, optim in _OPTIM.items()
} | _METHODS


def find_preset(name: str) -> dict[str, Any]:
    """Return the settings of a preset; ConfigError lists the known ones."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}: known are {', '.join(PRESETS)}")
    return PRESETS[name]
