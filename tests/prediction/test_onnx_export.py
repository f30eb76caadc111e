"""Export to ONNX: onnxruntime returns torch's classes, and a wrong file is not kept."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from segmentation_modules import UNet
from torch import nn

from sfss_ray.config import Config
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.errors import CheckpointError, ConfigError, OutputError
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.card import Card
from sfss_ray.models.checkpoints import load_source_model
from sfss_ray.models.model_file import SourceModel, load_model
from sfss_ray.models.user_code.wrapping import wrap_model
from sfss_ray.prediction import onnx_export
from sfss_ray.prediction.onnx_export import OPSET, export_onnx
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.streets.scenes import render_scene

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


def streets(number: int, size: tuple[int, int]) -> np.ndarray:
    images = [render_scene("camera", 7, i, size).image for i in range(number)]
    return np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255


def run(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


def test_the_shipped_model_predicts_the_same_in_onnxruntime(tmp_path: Path):
    path = tmp_path / "source.onnx"
    result = export_onnx(SOURCE_MODEL, path, size=(64, 128), progress=str)
    assert result.dynamic == ("batch", "height", "width")
    assert [p.name for p in tmp_path.iterdir()] == ["source.onnx"]
    model = load_model(SOURCE_MODEL)
    for images in (streets(1, (128, 256)), streets(3, (96, 160))):
        with torch.no_grad():
            expected = model(torch.from_numpy(images)).numpy()
        logits = run(path, images)
        assert len(np.unique(expected.argmax(1))) > 4
        assert np.array_equal(logits.argmax(1), expected.argmax(1))
        np.testing.assert_allclose(logits, expected, atol=1e-3)
    (opset,) = [o.version for o in onnx.load(path).opset_import if o.domain == ""]
    assert opset == OPSET == result.opset
    onnx.checker.check_model(str(path))


def test_a_deeplab_of_torchvision_with_another_card(tmp_path: Path):
    """The file includes the card (BGR, 0 to 255, align_corners)."""
    torch.manual_seed(0)
    name = "deeplabv3_mobilenet_v3_large"
    model = SourceModel(build_network(name, 19), name, CITYSCAPES_19).eval()
    model.network.use_card(
        Card((104.0, 116.7, 122.7), (1.0, 1.0, 1.0), "bgr", 255.0, True, CITYSCAPES_19.classes)
    )
    path = tmp_path / "deeplab.onnx"
    export_onnx(model, path, size=(64, 96), progress=str)
    images = streets(1, (64, 128))
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    logits = run(path, images)
    assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.999
    assert np.abs(logits - expected).max() < 1e-3 * np.abs(expected).max()


class _FixedSize(nn.Module):
    """A module that accepts images of one size only."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 8, 3, padding=1)
        self.position = nn.Parameter(torch.randn(1, 8, 64, 64))
        self.classifier = nn.Conv2d(8, 19, 1)

    def forward(self, x):
        return self.classifier(self.features(x) + self.position)


def test_a_network_of_one_size_has_fixed_height_and_width(tmp_path: Path):
    torch.manual_seed(0)
    model = wrap_model(
        _FixedSize(), classes="cityscapes-19", feature_layer="features", example_size=(64, 64)
    )
    result = export_onnx(model, tmp_path / "fixed.onnx", size=(64, 64), progress=str)
    assert result.dynamic == ("batch",)
    assert any("fixes height and width" in line for line in result.lines())
    assert run(tmp_path / "fixed.onnx", streets(2, (64, 64))).shape == (2, 19, 64, 64)


def test_a_module_with_a_multiple_exports_its_padding(tmp_path: Path):
    """The file takes images of any size, as the module in this package does."""
    model = wrap_model(UNet(5), classes=["a", "b", "c", "d", "e"]).eval()
    result = export_onnx(model, tmp_path / "unet.onnx", size=(45, 61), progress=str)
    assert result.dynamic == ("batch", "height", "width")
    images = streets(2, (50, 70))
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run(tmp_path / "unet.onnx", images), expected, atol=1e-4)


def test_a_file_with_other_predictions_is_not_kept(tmp_path: Path, monkeypatch):
    original = onnx_export._write

    def write_other(model, *arguments):
        torch.manual_seed(1)
        original(
            SourceModel(build_network("compact", 19), "compact", model.classes).eval(), *arguments
        )

    monkeypatch.setattr(onnx_export, "_write", write_other)
    with pytest.raises(CheckpointError, match=r"another class than torch on \d+ of"):
        export_onnx(SOURCE_MODEL, tmp_path / "wrong.onnx", size=(64, 64), progress=str)
    assert list(tmp_path.iterdir()) == []


def test_ties_are_counted_and_are_not_errors():
    expected = np.zeros((1, 2, 1, 3), np.float32)
    expected[0, 1] = [[1e-5, 1.0, -1.0]]
    logits = expected.copy()
    logits[0, 1, 0, 0] = -1e-5
    assert onnx_export._count_ties(expected, logits, "compact") == 1
    logits[0, 1, 0, 1] = -1
    with pytest.raises(CheckpointError, match="on 1 of 3 pixels"):
        onnx_export._count_ties(expected, logits, "compact")


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_the_error_for_a_missing_extra_has_the_install_command(name, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"needs {name}, .* pip install 'sfss-ray\[onnx\]'"):
        export_onnx(SOURCE_MODEL, tmp_path / "a.onnx", config=Config(), progress=str)


def test_logits_of_groups_are_exported(tmp_path: Path):
    path, lines, size = tmp_path / "groups.onnx", [], (64, 128)
    progress = lines.append
    result = export_onnx(SOURCE_MODEL, path, size=size, class_groups="camvid-11", progress=progress)
    assert lines[0].startswith("class groups 'camvid-11': sky; building = building + wall; ")
    assert result.output == "logits (B, 11, H, W)"
    images = streets(1, (96, 160))
    with torch.no_grad():
        expected = load_source_model(SOURCE_MODEL, class_groups="camvid-11")(
            torch.from_numpy(images)
        )
    np.testing.assert_allclose(run(path, images), expected.numpy(), atol=1e-3)


def test_an_export_replaces_no_model(tmp_path: Path):
    for name, reason in {"model.pt": "has another suffix", "model.onnx": "of another kind"}.items():
        model = Path(shutil.copy(SOURCE_MODEL, tmp_path / name))
        with pytest.raises(OutputError, match=reason):
            export_onnx(model, model, progress=str)
        assert model.read_bytes() == Path(SOURCE_MODEL).read_bytes()
