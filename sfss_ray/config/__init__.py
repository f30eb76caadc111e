"""Every knob, once: a tree of frozen dataclasses whose ranges are checked when they are made.

Paths are arguments of functions, never config, so that a config can be moved between machines.
`override` is the one way to change a value by name: recipes, saved JSON, the search and the tests
all go through it.
"""

from sfss_ray.config.masks import MaskConfig
from sfss_ray.config.presets import PRESETS, PROTOCOLS, find_preset
from sfss_ray.config.running import ComputeConfig, EvaluationConfig, TuneConfig
from sfss_ray.config.train import (
    AugmentConfig,
    LossConfig,
    OptimConfig,
    PairConfig,
    PretrainConfig,
    TrainConfig,
)
from sfss_ray.config.tree import Config, SourceWeights, differences, flatten, load_config, override

__all__ = [
    "PRESETS",
    "PROTOCOLS",
    "AugmentConfig",
    "ComputeConfig",
    "Config",
    "EvaluationConfig",
    "LossConfig",
    "MaskConfig",
    "OptimConfig",
    "PairConfig",
    "PretrainConfig",
    "SourceWeights",
    "TrainConfig",
    "TuneConfig",
    "differences",
    "find_preset",
    "flatten",
    "load_config",
    "override",
]
