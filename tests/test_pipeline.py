"""The student of a result is accepted by every function that takes a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import sfss_ray
from sfss_ray.config import Config, override
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.errors import ConfigError
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.segmenter import SegmenterOutput
from sfss_ray.models.source import open_source
from sfss_ray.pipeline import AdaptResult
from sfss_ray.report.report_record import IMPROVED, RunRecord, Verdict
from sfss_ray.streets.scenes import write_streets

SIZE = (64, 96)


class Own(nn.Module):
    """A user's network, with a list called `modules`."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.classifier = nn.Conv2d(8, 19, 1)
        self.modules = [self.encoder, self.classifier]  # pyright: ignore

    def forward(self, x):
        for layer in self.modules:  # pyright: ignore[reportGeneralTypeIssues]
            x = layer(x)
        return {"out": x}


def source_model(kind: str) -> sfss_ray.SourceModel:
    torch.manual_seed(0)
    if kind == "own":
        card = {"channel_order": "bgr", "value_range": 255}
        return sfss_ray.wrap_model(
            Own(), classes="cityscapes-19", feature_layer="encoder.2", card=card
        )
    return sfss_ray.SourceModel(build_network("compact", 19), "compact", CITYSCAPES_19)


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("streets")
    write_streets(root, "camera", 6, 2, SIZE)
    return root


@pytest.fixture(params=["built-in", "own"])
def result(request, tmp_path: Path) -> AdaptResult:
    """The result of `adapt`, whose student is stored in a model file."""
    model = source_model(request.param)
    model.facts = {"seed": 7}
    path = sfss_ray.save_model(tmp_path / "student.pt", model)
    return AdaptResult(tmp_path, path, RunRecord(), architecture=model.architecture)


def loaded(result: AdaptResult) -> sfss_ray.SourceModel:
    return sfss_ray.load_model(result.student_path, module=result.architecture)


@torch.no_grad()
def test_a_student_is_a_network_that_knows_its_classes(result):
    student, images = result.student, torch.rand(2, 3, *SIZE)
    output = student(images)
    assert isinstance(output, SegmenterOutput)
    assert student.logits(images).shape == (2, 19, *SIZE)
    assert torch.equal(student.logits(images), loaded(result)(images))
    assert student.classes == CITYSCAPES_19
    assert student.facts == {"seed": 7}
    assert not student.training


def test_the_verdict_of_a_result_is_that_of_its_report(tmp_path):
    verdict = Verdict(IMPROVED, "With labels, mIoU rises.")
    paths = tmp_path, tmp_path / "student.pt"
    assert AdaptResult(*paths, RunRecord(verdict=verdict)).verdict is verdict
    assert AdaptResult(*paths, RunRecord()).verdict is None


def test_a_student_is_predicted_with(result, streets, tmp_path):
    sfss_ray.predict(result.student, streets / "images", tmp_path / "out", progress=str)
    for image in (streets / "images").iterdir():
        pixels = torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            expected = loaded(result)(pixels).argmax(1)[0].numpy()
        predicted = np.array(Image.open(tmp_path / "out" / "train_ids" / f"{image.stem}.png"))
        assert (predicted == expected).mean() > 0.999


def test_a_student_is_scored_and_verified_as_its_file_is(result, streets):
    folders = streets / "images", streets / "labels"
    for judge in (sfss_ray.evaluate_model, sfss_ray.verify_source):
        by_student, by_model = (
            judge(model, *folders, progress=str) for model in (result.student, loaded(result))
        )
        assert by_student.miou == by_model.miou
        assert by_student.per_class == pytest.approx(by_model.per_class, nan_ok=True)


def test_a_student_is_saved_and_loaded(result, tmp_path):
    path = sfss_ray.save_model(tmp_path / "copy.pt", result.student)
    reloaded = sfss_ray.load_model(path, module=result.architecture)
    assert (reloaded.name, reloaded.classes, reloaded.facts) == (
        loaded(result).name,
        CITYSCAPES_19,
        {"seed": 7},
    )
    assert reloaded.card == loaded(result).card
    images = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(reloaded(images), result.student.logits(images))


def test_a_student_is_a_source_model_of_the_next_adaptation(result, tmp_path):
    source = open_source(result.student)
    assert source.sha256 == open_source(loaded(result)).sha256
    assert source.classes == CITYSCAPES_19
    placed = source.placed(tmp_path)
    images = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(placed.load()(images), result.student.logits(images))


def test_a_student_is_exported(result, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    exported = sfss_ray.export_onnx(
        result.student, tmp_path / "student.onnx", size=SIZE, progress=str
    )
    session = ort.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    images = torch.rand(1, 3, *SIZE)
    (logits,) = session.run(None, {"image": images.numpy()})
    with torch.no_grad():
        expected = result.student.logits(images).numpy()
    assert np.allclose(logits, expected, atol=1e-3)


def calls(model, folder: Path, streets: Path):
    images, labels = streets / "images", streets / "labels"
    quick = override(Config(), {"train.num_steps": 2})
    return [
        lambda: sfss_ray.predict(model, images, folder / "p", progress=str),
        lambda: sfss_ray.evaluate_model(model, images, labels, progress=str),
        lambda: sfss_ray.verify_source(model, images, progress=str),
        lambda: sfss_ray.save_model(folder / "m.pt", model),
        lambda: sfss_ray.export_onnx(model, folder / "m.onnx"),
        lambda: sfss_ray.adapt(model, images, folder / "run", config=quick, progress=str),
    ]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Conv2d(3, 19, 1), r"a torch module \(torch\.nn.*Conv2d\).*sfss_ray\.wrap_model\("),
        (build_network("compact", 19), "has no class names: give sfss_ray.SourceModel"),
        ({"state_dict": {}}, r"of type builtins\.dict: allowed are the path"),
    ],
)
def test_other_objects_are_refused_in_one_line(model, message, streets, tmp_path):
    for call in calls(model, tmp_path, streets):
        with pytest.raises(ConfigError, match=message) as refused:
            call()
        assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
