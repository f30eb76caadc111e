"""One Ray cluster for all tests of this folder, and small real inputs."""

import logging
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_cluster():
    """Two CPUs, whatever the machine has, so that scheduling is the same everywhere."""
    from sfss_ray.runtime.cluster import prepare_environment

    prepare_environment()
    # The credentials of the machine, for addresses without any.
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "user")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "secret")
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, logging_level=logging.ERROR, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def streets(tmp_path_factory) -> Path:
    """target/images (12) and val/{images,labels} (4), drawn."""
    from sfss_ray.streets.scenes import write_streets

    root = tmp_path_factory.mktemp("streets")
    write_streets(root / "target", "camera", 5, 12, (64, 128), with_labels=False)
    write_streets(root / "val", "camera", 6, 4, (64, 128))
    return root


@pytest.fixture(scope="session")
def source_model(tmp_path_factory) -> Path:
    """A compact network with random weights, seeded."""
    import torch

    from sfss_ray.data.class_sets import CITYSCAPES_19
    from sfss_ray.models.architectures.catalogue import build_network
    from sfss_ray.models.model_file import SourceModel, save_model

    torch.manual_seed(0)
    model = SourceModel(build_network("compact", 19), "compact", CITYSCAPES_19, {})
    return save_model(tmp_path_factory.mktemp("model") / "source.pt", model)


@pytest.fixture(scope="session")
def tiny_config():
    """Six steps on 64x128 crops."""
    from sfss_ray.config import Config, override

    return override(
        Config(),
        {
            "masks.images_per_shard": 3,
            "train.num_steps": 6,
            "train.evaluate_every": 3,
            "train.batch_size": 2,
            "train.statistics_images": 2,
            "train.augment.crop_size": [64, 128],
            "train.augment.scale_range": [1.0, 1.2],
            "train.pairs.anchors_per_image": 32,
            "train.pairs.negatives": 32,
            "train.pairs.bank_size": 8,
            "evaluation.pictures": 2,
            "compute.cpus_per_worker": 0.5,
        },
    )
