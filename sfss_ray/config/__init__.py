"""Every knob, once: a tree of frozen dataclasses whose ranges are stated in their types.

Paths are arguments of functions, never config, so that a config can be moved between machines.
`override` is the one way to change a value by name. Recipes, config files, the search and the tests
all use it.
"""

from sfss_ray.config.config_file import load_config, to_yaml
from sfss_ray.config.masks import MaskConfig
from sfss_ray.config.presets import NETWORK_PRESETS, PRESETS, find_preset
from sfss_ray.config.running import ComputeConfig, EvaluationConfig, ReportConfig, TuneConfig
from sfss_ray.config.train import (
    AugmentConfig,
    LossConfig,
    OptimConfig,
    PairConfig,
    PretrainConfig,
    TrainConfig,
)
from sfss_ray.config.tree import Config, SourceWeights, differences, flatten, override

__all__ = [
    "NETWORK_PRESETS",
    "PRESETS",
    "AugmentConfig",
    "ComputeConfig",
    "Config",
    "EvaluationConfig",
    "LossConfig",
    "MaskConfig",
    "OptimConfig",
    "PairConfig",
    "PretrainConfig",
    "ReportConfig",
    "SourceWeights",
    "TrainConfig",
    "TuneConfig",
    "differences",
    "find_preset",
    "flatten",
    "load_config",
    "override",
    "to_yaml",
]
