"""Evaluating a model on labels of other class sets, and the files that it writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sfss_ray.config import Config, override
from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19, SYNTHIA_16
from sfss_ray.data.decoding import read_image
from sfss_ray.errors import DataError, OutputError
from sfss_ray.evaluation import inference, scoring
from sfss_ray.evaluation.inference import predict_probabilities
from sfss_ray.evaluation.scoring import EvaluationResult, evaluate_model
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.model_file import SourceModel

SIZE = (32, 48)
CPU = override(Config(), {"compute.device": "cpu"})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Random images with Cityscapes labelTrainIds and with SYNTHIA labels."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for folder in ("city", "cityLabels", "syn", "synLabels"):
        (root / folder).mkdir()
    for name in ("a", "b"):
        image = Image.fromarray(rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8))
        image.save(root / "city" / f"{name}_leftImg8bit.png")
        image.save(root / "syn" / f"{name}.png")
        ids = rng.integers(0, 19, SIZE).astype(np.uint8)
        ids[0] = 255
        Image.fromarray(ids).save(root / "cityLabels" / f"{name}_gtFine_labelTrainIds.png")
        rgb = np.zeros((*SIZE, 3), np.uint16)
        rgb[..., 2] = rng.integers(0, 23, SIZE)  # OpenCV: the third is the file's first channel
        assert cv2.imwrite(str(root / "synLabels" / f"{name}.png"), rgb)
    return root


def model(classes) -> SourceModel:
    torch.manual_seed(1)
    return SourceModel(build_network("compact", len(classes)), "compact", classes)


def test_an_image_too_large_for_the_memory_is_one_line(data, monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(inference, "_average_views", fail)
    with pytest.raises(DataError, match=r"^image '.*a_leftImg8bit.png': 48x32 pixels are too many"):
        evaluate_model(model(CITYSCAPES_19), data / "city", data / "cityLabels", config=CPU)


def slow_ious(model_: SourceModel, root: Path) -> dict[str, float]:
    """IoU by name, counted class by class; labels that the model lacks are left out."""
    hit = dict.fromkeys(CITYSCAPES_19.classes, 0)
    union = dict.fromkeys(CITYSCAPES_19.classes, 0)
    names = np.array([*CITYSCAPES_19.classes, *[""] * 237], dtype=object)
    model_names = np.array(model_.classes.classes, dtype=object)
    for path in sorted((root / "city").iterdir()):
        stem = path.stem.removesuffix("_leftImg8bit")
        ids = np.array(Image.open(root / "cityLabels" / f"{stem}_gtFine_labelTrainIds.png"))
        label = names[ids]
        image = read_image(path)
        guess = model_names[
            predict_probabilities(model_.network.eval(), image, CPU.evaluation).argmax(0)
        ]
        valid = np.isin(label, list(model_.classes.classes))
        for name in model_.classes.classes:
            hit[name] += int(((label == name) & (guess == name) & valid).sum())
            union[name] += int((((label == name) | (guess == name)) & valid).sum())
    return {name: 100 * hit[name] / union[name] for name in model_.classes.classes}


@pytest.mark.parametrize("classes", [CITYSCAPES_19, SYNTHIA_16], ids=["19", "16"])
def test_classes_are_matched_by_name(classes, data):
    lines: list[str] = []
    mine = model(classes)
    result = evaluate_model(
        mine, data / "city", data / "cityLabels", config=CPU, progress=lines.append
    )
    expected = slow_ious(mine, data)
    assert result.per_class == pytest.approx(expected)
    assert result.miou == pytest.approx(np.mean(list(expected.values())))
    lacking = () if len(classes) == 19 else ("terrain", "truck", "train")
    assert result.lacking == lacking
    names = ["mIoU-16", "mIoU-13"] if lacking else ["mIoU-19", "mIoU-16", "mIoU-13"]
    assert list(result.named) == names
    thirteen = [v for k, v in expected.items() if k not in ("wall", "fence", "pole")]
    if lacking:
        assert result.named["mIoU-16"] == pytest.approx(result.miou)
        assert result.named["mIoU-13"] == pytest.approx(np.mean(thirteen))
        assert "lacks these classes: terrain, truck, train" in "\n".join(result.lines())
    assert any("*_labelTrainIds" in line for line in lines)


def test_a_cityscapes_model_is_scored_on_camvid_over_the_classes_both_have(tmp_path):
    rng, mine = np.random.default_rng(2), model(CITYSCAPES_19)
    ids = rng.integers(0, 12, SIZE).astype(np.uint8)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.fromarray(ids).save(tmp_path / "labels" / "0001TP_000001.png")
    pixels = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "0001TP_000001.png")
    result = evaluate_model(
        mine, tmp_path / "images", tmp_path / "labels", config=CPU, progress=str
    )
    same = {"pavement": "sidewalk", "tree": "vegetation", "sign": "traffic sign"}
    same |= {"pedestrian": "person"}
    label = np.array([same.get(n, n) for n in CAMVID_11.classes] + ["void"], dtype=object)[ids]
    guess = predict_probabilities(mine.network.eval(), pixels, CPU.evaluation).argmax(0)
    guess = np.array(CITYSCAPES_19.classes, dtype=object)[guess]
    valid = ~np.isin(label, ["bicyclist", "void"])
    for name in CITYSCAPES_19.classes:
        hit = ((label == name) & (guess == name) & valid).sum()
        union = (((label == name) | (guess == name)) & valid).sum()
        if (label == name).any():
            assert result.per_class[name] == pytest.approx(100 * hit / union), name
        else:
            assert np.isnan(result.per_class[name])
    text = "\n".join(result.lines())
    assert "pavement = sidewalk, tree = vegetation, sign = traffic sign, pedestrian" in text
    assert "lacks these classes: bicyclist" in text
    assert result.as_dict()["synonyms"] == same
    assert result.named == {}


def test_absent_classes_are_stated_and_not_counted(data):
    result = evaluate_model(
        model(CITYSCAPES_19), data / "syn", data / "synLabels", config=CPU, progress=str
    )
    assert result.labels_format == "synthia"
    absent = [name for name, value in result.per_class.items() if np.isnan(value)]
    assert absent == ["terrain", "truck", "train"]
    assert list(result.named) == ["mIoU-16", "mIoU-13"]
    text = "\n".join(result.lines())
    assert "mean of the 16 of 19 classes of cityscapes-19" in text
    assert "absent: terrain, truck, train" in text
    assert "no flip" in text
    # SYNTHIA's labels cannot show these three: no official mean counts them.
    assert (result.official_miou, result.only_predicted) == (result.miou, ())
    assert "official" not in text


def test_the_official_mean_is_printed_where_it_differs(data, tmp_path):
    """All labels are road; the model predicts other classes too, which the official mean counts as 0."""
    mine = model(CITYSCAPES_19)
    guesses = []
    for path in sorted((data / "city").iterdir()):
        label = tmp_path / "labels" / path.name.replace("leftImg8bit", "gtFine_labelIds")
        label.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full(SIZE, 7, np.uint8)).save(label)  # 7 is road
        probabilities = predict_probabilities(mine.network.eval(), read_image(path), CPU.evaluation)
        guesses.append(probabilities.argmax(0))
    predicted = [CITYSCAPES_19.classes[i] for i in np.unique(guesses)]
    only_predicted = [name for name in predicted if name != "road"]
    assert only_predicted
    road = 100 * float(np.mean(np.array(guesses) == 0))
    result = evaluate_model(
        mine,
        data / "city",
        tmp_path / "labels",
        output_dir=tmp_path / "out",
        config=CPU,
        progress=str,
    )
    official = road / (1 + len(only_predicted))
    assert (result.miou, result.official_miou) == pytest.approx((road, official))
    assert result.only_predicted == tuple(only_predicted)
    assert (result.named["mIoU-19"], result.named_official["mIoU-19"]) == pytest.approx(
        (road, official)
    )
    text = "\n".join(result.lines())
    assert f"miou: {road:.2f}\n" in text
    assert f"official_miou: {official:.2f}\n" in text
    assert f"IoU 0 for absent classes that are predicted: {', '.join(only_predicted)}" in text
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["official_miou"] == pytest.approx(official)
    assert written["only_predicted"] == only_predicted


def test_table_picture_and_json_are_written(data, tmp_path):
    result = evaluate_model(
        model(CITYSCAPES_19),
        data / "syn",
        data / "synLabels",
        output_dir=tmp_path / "out",
        config=CPU,
        progress=str,
    )
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["per_class"]["road"] == pytest.approx(result.per_class["road"])
    assert written["per_class"]["train"] is None
    assert np.array_equal(written["confusion"], result.confusion)
    assert written["named"].keys() == {"mIoU-16", "mIoU-13"}
    assert written["config"]["evaluation.flip"] is False
    with open(tmp_path / "out" / "per_class.csv") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert float(rows["car"]["iou_percent"]) == pytest.approx(result.per_class["car"], abs=1e-3)
    assert rows["train"]["iou_percent"] == ""
    assert min(read_image(tmp_path / "out" / "confusion.png").shape[:2]) > 500
    assert [path.name for path in result.files] == [
        "evaluation.json",
        "per_class.csv",
        "confusion.png",
    ]


@pytest.fixture
def no_evaluation(monkeypatch):
    """Reading the model or scoring an image fails the test."""

    def fail(*arguments, **options):
        raise AssertionError("the model was read")

    monkeypatch.setattr(scoring, "open_source", fail)


@pytest.mark.parametrize("folder", ["syn", "syn/scores", "synLabels/scores"])
def test_no_output_is_written_among_images_and_labels(folder, data, no_evaluation):
    with pytest.raises(DataError, match=r"lies in the folder of images .*: give one beside it"):
        evaluate_model(
            "source.pt", data / "syn", data / "synLabels", output_dir=data / folder, progress=str
        )


def test_an_output_that_cannot_be_written_is_found_first(data, tmp_path, no_evaluation):
    (tmp_path / "file").touch()
    reasons = {
        "file": "File exists",
        "file/scores": "Not a directory",
        300 * "x": "File name too long",
    }
    for name, reason in reasons.items():
        with pytest.raises(OutputError, match=rf"cannot be written \({reason}\)"):
            evaluate_model(
                "source.pt", data / "syn", data / "synLabels", output_dir=tmp_path / name
            )
    with pytest.raises(DataError, match="'file://' names no folder"):
        evaluate_model("source.pt", data / "syn", data / "synLabels", output_dir="file://")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_scores_that_cannot_be_written_are_printed(data, tmp_path):
    (tmp_path / "out" / "per_class.csv").mkdir(parents=True)
    lines: list[str] = []
    with pytest.raises(OutputError, match=r"per_class.csv' cannot be written"):
        evaluate_model(
            model(CITYSCAPES_19),
            data / "city",
            data / "cityLabels",
            output_dir=tmp_path / "out",
            config=CPU,
            progress=lines.append,
        )
    assert any(line.startswith("miou: ") for line in lines)
    assert any(line.startswith("road ") for line in lines)


CAMVID_GROUPS = {
    "sky": ["sky"],
    "building": ["building", "wall"],
    "pole": ["pole"],
    "road": ["road"],
    "pavement": ["sidewalk"],
    "tree": ["vegetation", "terrain"],
    "sign": ["traffic light", "traffic sign"],
    "fence": ["fence"],
    "car": ["car", "truck", "bus", "train"],
    "pedestrian": ["person"],
    "bicyclist": ["rider", "motorcycle", "bicycle"],
}


def group_predictions(image: np.ndarray, source: SourceModel) -> np.ndarray:
    """The group with the highest sum of probabilities in each pixel, as indices of CamVid."""
    probabilities = predict_probabilities(source.network.eval(), image, CPU.evaluation)
    indices = [
        [CITYSCAPES_19.classes.index(m) for m in CAMVID_GROUPS[n]] for n in CAMVID_11.classes
    ]
    return np.stack([probabilities[members].sum(0) for members in indices]).argmax(0)


def grouped_ious(pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """IoU of each of CamVid's classes over (labels, predictions), where labels are names."""
    ious = []
    for index, name in enumerate(CAMVID_11.classes):
        masks = [(label == name, (guess == index) & (label != "")) for label, guess in pairs]
        hit = sum((mine & theirs).sum() for mine, theirs in masks)
        ious.append(100 * hit / sum((mine | theirs).sum() for mine, theirs in masks))
    return ious


def test_labels_of_the_members_are_scored_as_their_groups(data):
    """Nineteen classes in the labels, eleven groups in the model."""
    lines: list[str] = []
    mine = model(CITYSCAPES_19)
    folders = (data / "city", data / "cityLabels")
    result = evaluate_model(
        mine, *folders, class_groups=CAMVID_GROUPS, config=CPU, progress=lines.append
    )
    group_of = {member: name for name, members in CAMVID_GROUPS.items() for member in members}
    names = np.array([*map(group_of.get, CITYSCAPES_19.classes), *[""] * 237], dtype=object)
    pairs = []
    for path in sorted(folders[0].iterdir()):
        stem = path.stem.removesuffix("_leftImg8bit")
        ids = np.array(Image.open(folders[1] / f"{stem}_gtFine_labelTrainIds.png"))
        pairs.append((names[ids], group_predictions(read_image(path), mine)))
    assert list(result.per_class) == list(CAMVID_11.classes)
    assert list(result.per_class.values()) == pytest.approx(grouped_ious(pairs))
    assert (result.class_set, result.lacking, result.unmatched) == ("camvid-11", (), "")
    assert result.named == {"mIoU-11": pytest.approx(result.miou)}
    assert result.joined["terrain"] == "tree"
    text = "\n".join(result.lines())
    assert "class groups: sky; building = building + wall; pole" in text
    assert any(
        "joined as the groups state: sidewalk in pavement, wall in building" in line
        for line in lines
    )
    assert mine.classes == CITYSCAPES_19


def test_labels_of_the_groups_are_scored_by_name(tmp_path):
    rng, mine = np.random.default_rng(2), model(CITYSCAPES_19)
    ids = rng.integers(0, 12, SIZE).astype(np.uint8)
    pixels = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    for folder, content in (("images", pixels), ("labels", ids)):
        (tmp_path / folder).mkdir()
        Image.fromarray(content).save(tmp_path / folder / "0001TP_000001.png")
    folders = (tmp_path / "images", tmp_path / "labels")
    result = evaluate_model(mine, *folders, class_groups="camvid-11", config=CPU, progress=str)
    label = np.array([*CAMVID_11.classes, ""], dtype=object)[ids]
    expected = grouped_ious([(label, group_predictions(pixels, mine))])
    assert list(result.per_class.values()) == pytest.approx(expected)
    assert (result.lacking, result.synonyms, result.joined, result.unmatched) == ((), {}, {}, "")
    by_name = evaluate_model(mine, *folders, config=CPU, progress=str)
    assert by_name.miou != pytest.approx(result.miou)
    assert "class_groups camvid-11 joins them" in by_name.lines()[-1]


def test_a_network_trained_on_cityscapes_is_scored_on_camvids_classes(shared_data, tmp_path):
    """It calls some of CamVid's cars truck, which counts as wrong without the grouping."""
    camvid, network = shared_data("camvid"), "espnetv2_s_1.0_city_1024x512.pth"
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for path in sorted((camvid / kind / "train").glob("0001TP_*"))[1::12]:
            (tmp_path / kind / path.name).symlink_to(path)
    views = {"mode": "slide", "window": [352, 480], "stride": [8, 480]}
    config = override(CPU, {f"evaluation.{name}": value for name, value in views.items()})

    def evaluate(class_groups: str | None) -> EvaluationResult:
        return evaluate_model(
            shared_data("models") / network,
            tmp_path / "images",
            tmp_path / "labels",
            class_groups=class_groups,
            config=config,
            progress=str,
        )

    grouped, by_name = evaluate("camvid-11"), evaluate(None)
    assert grouped.images >= 5
    assert grouped.named["mIoU-11"] > 40
    assert grouped.groups[-1] == "dropped: background"
    assert grouped.unmatched == ""
    assert grouped.per_class["car"] > by_name.per_class["car"] + 5
    assert "truck" in by_name.unmatched
    assert "class_groups camvid-11 joins them" in by_name.unmatched
