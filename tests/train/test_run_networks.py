"""The networks of a run: sent to another process, scored, and shown on images."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from train_samples import adaptation_task, sharp_source, small_config, write_dataset

from sfss_ray.errors import ClusterError
from sfss_ray.models.model_file import load_model, save_model
from sfss_ray.models.source import open_source
from sfss_ray.train.run_networks import (
    ADAPTED,
    BATCH_NORM_ONLY,
    SOURCE_ONLY,
    Examined,
    RunNetworks,
    examine_networks,
    load_networks,
    predict_classes,
)
from sfss_ray.train.training_inputs import Prepared


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> RunNetworks:
    """A source model, and a student with other weights."""
    root = write_dataset(tmp_path_factory.mktemp("networks"))
    source = sharp_source(root / "source.pt")
    student = load_model(source)
    with torch.no_grad():
        for weights in student.network.parameters():
            weights.mul_(0.9)
    save_model(root / "student.pt", student)
    images = adaptation_task(root, source, small_config()).images
    prepared = Prepared(open_source(source), images[:4], images[4:], (), str(root / "masks"))
    return RunNetworks(prepared, small_config(), None, {ADAPTED: root / "student.pt"}, images[4:])


def test_the_task_can_be_sent_to_a_worker_and_its_results_back(task):
    sent = pickle.loads(pickle.dumps(task))
    *lines, result = examine_networks(sent, "cpu")
    assert lines == ["evaluating source-only", "evaluating adapted"]
    assert isinstance(result, Examined)
    returned = pickle.loads(pickle.dumps(result))
    examination = task.prepared.examination(task.config)
    networks = load_networks(task, "cpu")
    source = examination.score(networks[SOURCE_ONLY])
    assert returned.scores[SOURCE_ONLY].entropy == source.entropy
    adapted = examination.with_source(networks[SOURCE_ONLY]).score(networks[ADAPTED])
    assert returned.scores[ADAPTED].as_dict() == adapted.as_dict()
    assert len(returned.predictions) == len(task.images)
    for file, classes in zip(task.images, returned.predictions, strict=True):
        with torch.inference_mode():
            pixels = torch.from_numpy(file.read()).permute(2, 0, 1)[None].float() / 255
            logits = networks[ADAPTED](pixels).logits
            # PyTorch's bilinear upsampling to the image's own size.
            size = tuple(pixels.shape[-2:])
            logits = interpolate(logits, size, mode="bilinear", align_corners=False)
            expected = logits.argmax(1)[0].numpy()
        assert set(classes) == {SOURCE_ONLY, ADAPTED}
        assert classes[ADAPTED].dtype == np.uint8
        np.testing.assert_array_equal(classes[ADAPTED], expected)


def test_networks_are_in_the_order_of_the_rows(task, tmp_path: Path):
    from sfss_ray.train.batch_norm import read_statistics

    statistics = tmp_path / "statistics.pt"
    torch.save(read_statistics(task.prepared.source.load().network), statistics)
    with_statistics = RunNetworks(
        task.prepared, task.config, statistics, dict(task.models, baseline=task.models[ADAPTED]), ()
    )
    names = list(load_networks(with_statistics, "cpu"))
    assert names == [SOURCE_ONLY, BATCH_NORM_ONLY, ADAPTED, "baseline"]


def test_an_image_is_predicted_once_per_network(task):
    networks = load_networks(task, "cpu")
    classes = predict_classes(task.images[0], networks, task.config)
    assert {array.shape for array in classes.values()} == {task.images[0].read().shape[:2]}


def test_a_worker_whose_gpu_cannot_be_used_says_so(task, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ClusterError, match="that torch"):
        next(examine_networks(task, "cuda"))
