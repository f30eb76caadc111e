"""A config of seconds for tests of plans and their measurements."""

from sfss_ray.config import Config, override

PLAN_CONFIG = override(
    Config(),
    {
        "compute.device": "cpu",
        "train.num_steps": 40,
        "train.evaluate_every": 15,
        "train.batch_size": 2,
        "train.augment.crop_size": [64, 96],
        "train.pairs.bank_size": 8,
        "tune.num_trials": 5,
        "compute.concurrent_trials": 2,
        "compute.mask_actors": 2,
    },
)
