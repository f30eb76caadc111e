"""Networks by name, and the file a model is kept in."""

from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19, class_set_of
from sfss_ray.errors import CheckpointError, ConfigError
from sfss_ray.models.architectures.catalogue import NETWORKS, build_network
from sfss_ray.models.card import Card
from sfss_ray.models.model_file import FORMAT, SourceModel, load_model, save_model
from sfss_ray.models.reading import file_sha256
from sfss_ray.streets.default import SOURCE_MODEL

CLASSES = class_set_of(["road", "sky", "boat"])


@pytest.fixture(scope="module")
def model() -> SourceModel:
    torch.manual_seed(0)
    network = build_network("compact", len(CLASSES)).eval()
    network(torch.rand(2, 3, 32, 32))
    return SourceModel(network, "compact", CLASSES, {"seed": 0, "made_by": "a test"})


@pytest.fixture
def file(model: SourceModel, tmp_path: Path) -> Path:
    return save_model(tmp_path / "model.pt", model)


def refusal(path: Path, *, kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind) as refused:
        load_model(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def written(path: Path, content) -> Path:
    torch.save(content, path)
    return path


# Those of the optional package have tests of their own (test_segformer_families.py).
PLAIN = [name for name in NETWORKS if not re.search(r"former_|^hrda_", name)]


@pytest.mark.parametrize("name", PLAIN)
@torch.no_grad()
def test_every_network_gives_features_and_logits_on_one_grid(name):
    network = build_network(name, 5).eval()
    images = torch.rand(2, 3, 64, 96)
    features, logits = network(images)
    assert features.shape[2:] == logits.shape[2:]
    assert logits.shape[:2] == (2, 5)
    assert torch.equal(logits, network.classifier(features))
    assert network.feature_width == features.shape[1]
    full = network.logits(images)
    assert full.shape == (2, 5, 64, 96)
    assert torch.isfinite(full).all()


@torch.no_grad()
def test_images_are_normalised_inside_the_network():
    network = build_network("compact", 2)
    network.body = nn.Identity()
    grey = network.mean.expand(1, 3, 4, 4)
    network.classifier = nn.Identity()
    assert network(grey).logits.abs().max() == 0
    assert torch.allclose(network(grey + network.std).logits, torch.ones(1, 3, 4, 4))


def test_logits_are_scaled_up_in_float32():
    network = build_network("compact", 2)
    coarse = torch.tensor([[[[0.0, 1.0]]]], dtype=torch.bfloat16)
    fine = network.upsample(coarse, (1, 4))
    assert fine.dtype == torch.float32
    assert fine.flatten().tolist() == [0.0, 0.25, 0.75, 1.0]


def test_a_step_reaches_every_weight():
    network = build_network("compact", 3)
    network.logits(torch.rand(2, 3, 32, 32)).square().mean().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []


def test_unknown_networks_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="unknown network 'unet': known are compact, "):
        build_network("unet", 3)


def test_a_model_comes_back_as_it_was(model, file):
    loaded = load_model(file)
    assert (loaded.name, loaded.classes, loaded.facts) == ("compact", CLASSES, model.facts)
    assert not loaded.network.training
    state = loaded.network.state_dict()
    for name, weight in model.network.state_dict().items():
        assert torch.equal(state[name], weight), name


def test_known_class_sets_come_back_as_themselves(tmp_path: Path):
    for known in (CITYSCAPES_19, CAMVID_11):
        network = build_network("compact", len(known))
        path = save_model(tmp_path / f"{known.name}.pt", SourceModel(network, "compact", known))
        assert load_model(path).classes is known


def test_half_precision_files_are_half_as_large_and_load_in_full(model, file, tmp_path: Path):
    small = save_model(tmp_path / "half.pt", model, half=True)
    assert small.stat().st_size < 0.6 * file.stat().st_size
    network = load_model(small).network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(
            network.logits(images), model.network.logits(images), atol=1e-2, rtol=1e-2
        )


def test_plain_torch_reads_the_file(file):
    content = torch.load(file, weights_only=True)
    assert content["format"] == FORMAT
    assert content["classes"] == ["road", "sky", "boat"]
    assert content["card"]["classes"] == content["classes"]
    parts = {"format", "network", "classes", "class_set", "card", "state_dict", "facts"}
    assert set(content) == parts


def test_files_of_the_first_format_still_load(model, file):
    content = torch.load(file, weights_only=True)
    del content["card"]
    content["format"] = "sfss_ray.model/1"
    loaded = load_model(written(file, content))
    assert loaded.card == Card(classes=CLASSES.classes) == model.card
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), model.network.logits(images))
    shipped = load_model(SOURCE_MODEL)
    assert shipped.card == Card(classes=shipped.classes.classes)


def test_a_card_of_another_preprocessing_comes_back(file):
    content = torch.load(file, weights_only=True)
    content["card"] |= {"channel_order": "bgr", "value_range": 255, "align_corners": True}
    loaded = load_model(written(file, content))
    assert loaded.card == Card.from_dict(content["card"])
    content["card"]["channel_order"] = "gbr"
    assert "card: channel_order is 'gbr'" in refusal(written(file, content))


def test_saving_makes_folders_and_leaves_nothing_else(model, tmp_path: Path):
    path = save_model(tmp_path / "new" / "model.pt", model)
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]


def test_missing_files_are_named(tmp_path: Path):
    assert "nowhere.pt' does not exist; give" in refusal(tmp_path / "nowhere.pt")
    assert "is a folder without config.json" in refusal(tmp_path)


@pytest.mark.parametrize("data", [b"", b"garbage, no weights", bytes(range(256)) * 40])
def test_garbage_is_refused(data, tmp_path: Path):
    path = tmp_path / "garbage.pt"
    path.write_bytes(data)
    assert "garbage.pt" in refusal(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_half_copied_files_are_refused(share, file):
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    assert "model.pt" in refusal(file)


class _Intruder:
    """Runs code when it is unpickled."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


def test_code_in_a_file_is_not_run(tmp_path: Path):
    place = tmp_path / "intruder was here"
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps({"format": FORMAT, "x": _Intruder(place)}, protocol=2))
    for path in (plain, written(tmp_path / "zip.pt", {"x": _Intruder(place)})):
        assert path.name in refusal(path)
    assert not place.exists()


def test_checkpoints_of_another_kind_are_refused_with_what_was_found(tmp_path: Path):
    message = refusal(written(tmp_path / "a.pt", {"epoch": 3, "state_dict": {}}))
    assert "another kind (found: epoch, state_dict)" in message
    assert "sfss-ray pretrain" in message
    assert "found: no dict" in refusal(written(tmp_path / "b.pt", [torch.zeros(1)]))
    assert "found: 1)" in refusal(written(tmp_path / "c.pt", {1: 2}))


def test_files_that_lack_a_part_are_refused(file):
    content = torch.load(file, weights_only=True)
    del content["classes"], content["facts"]
    assert "lacks classes, facts" in refusal(written(file, content))


def test_weights_of_another_shape_are_refused_with_the_first(file):
    content = torch.load(file, weights_only=True)
    content["state_dict"]["classifier.weight"] = torch.zeros(7, 64, 1, 1)
    message = refusal(written(file, content))
    assert "does not fit network 'compact'" in message
    assert "classifier.weight" in message


def test_weights_of_another_network_are_refused_in_a_line_that_can_be_read(file):
    content = torch.load(file, weights_only=True)
    content["network"] = "deeplabv3_mobilenet_v3_large"
    message = refusal(written(file, content))
    assert "does not fit network 'deeplabv3_mobilenet_v3_large'" in message
    assert len(message) < 600


def test_networks_that_nobody_knows_are_refused(file):
    content = torch.load(file, weights_only=True)
    content["network"] = "unet"
    assert "unknown network 'unet'" in refusal(written(file, content))


def test_file_sha256_is_that_of_the_bytes(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 100_000)
    assert file_sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
