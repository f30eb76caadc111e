"""The page on disk: self-contained, escaped, whole for any part that is missing."""

import functools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_samples import ADAPT, adapt_report, tune_report, unlabelled_report

from sfss_ray.report.page import data_uri, json_ready, render_page, write_report
from sfss_ray.report.pictures import Strip


class Outline(HTMLParser):
    """Collects what a page refers to and the text that a reader sees."""

    def __init__(self, page):
        super().__init__()
        self.references, self.tags, self.words = [], [], []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.words.append(data)


def write(tmp_path, report, strips=()):
    return write_report(tmp_path / "run", report, strips).read_text(encoding="utf-8")


@functools.cache
def page_of(kind):
    """A page without pictures, rendered once for all tests that only read it."""
    made = {"adapt": adapt_report, "tune": tune_report, "unlabelled": unlabelled_report}
    return render_page(json_ready(made[kind]()))


def make_strips(count=1, size=(32, 64)):
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 3, size, dtype=np.uint8) for _ in range(3)]
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    predictions = {"source-only": ids[0], "adapted": ids[1]}
    return [Strip(f"a/b {k}", image, ids[2], predictions, ids[2]) for k in range(count)]


def test_headline_says_before_after_and_gain():
    text = Outline(page_of("adapt")).text
    assert "mIoU, %: source-only → adapted 38.1 → 51.2 (+13.1)" in text
    assert "1 of 2 classes improved, most: road +30.4, least: car -4.2" in text
    for badge in ("classes: three", "network: student", "step: last (400 of 400)", "seed: 0"):
        assert badge in text
    assert "oracle" not in text


def test_a_loss_is_shown_as_one(tmp_path):
    report = adapt_report(curves=[])
    report["rows"][1]["miou"] = 30.0
    assert '<span class="worse">(-8.1)</span>' in write(tmp_path, report)


def test_nothing_outside_the_page_is_asked_for(tmp_path):
    page = write(tmp_path, tune_report(), make_strips())
    outline = Outline(page)
    assert not {"script", "link", "iframe", "object"} & set(outline.tags)
    for reference in outline.references:
        assert reference.startswith(("data:image/", "#", "pictures/"))
    assert not re.search(r"https?://|@import", page)


def test_names_from_outside_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    report = tune_report(title=evil, errors=[{"image": evil, "reason": evil}], config={evil: evil})
    report["class_set"] = {"name": evil, "classes": [evil, "b", "c"]}
    report["rows"][1]["name"] = report["trials"][0]["name"] = report["score_name"] = evil
    strip = make_strips()[0]
    strip = Strip(f'"{evil}', strip.image, None, {evil: strip.labels}, strip.labels)
    page = write(tmp_path, report, [strip])
    assert "<script" not in page
    assert evil in Outline(page).text


def test_json_round_trips_and_holds_no_nan(tmp_path):
    report = adapt_report(seed=np.int64(3), seeds=(1, 2), curves=[])
    report["rows"][0]["miou"] = float("nan")
    report["rows"][1]["per_class"] = np.array([1.0, np.inf, np.nan], np.float32)
    write(tmp_path, report)
    text = (tmp_path / "run" / "report.json").read_text(encoding="utf-8")
    read = json.loads(text, parse_constant=pytest.fail)
    assert read["rows"][0]["miou"] is None
    assert read["rows"][1]["per_class"] == [1.0, None, None]
    assert (read["seed"], read["seeds"]) == (3, [1, 2])
    assert read == json_ready(read)
    assert list(read)[:2] == ["title", "kind"]
    assert list(read["config"]) == sorted(ADAPT["config"])


def test_nan_scores_are_dashes_on_the_page(tmp_path):
    report = adapt_report(curves=[])
    report["rows"][1]["miou"] = float("nan")
    text = Outline(write(tmp_path, report)).text
    assert "38.1 → -" in text
    assert "nan" not in text.lower().replace("became nan", "")


def test_any_part_may_be_missing():
    plain = adapt_report(curves=[], rows=[{"name": "source-only", "miou": 38.1}])
    for missing in ADAPT:
        report = {key: value for key, value in plain.items() if key != missing}
        assert "</html>" in render_page(json_ready(report)), missing


@pytest.mark.parametrize("missing", ["class_set", "rows", "best_trial"])
def test_trials_are_shown_without(missing):
    report = tune_report(curves=[])
    del report[missing], report["score_name"]
    assert "trial 5" in render_page(json_ready(report))


def test_an_empty_report_says_that_nothing_was_scored(tmp_path):
    assert "Nothing was scored." in write(tmp_path, {})


def test_sections_without_data_are_left_out():
    text = Outline(page_of("unlabelled")).text
    assert "No labels were given: the scores below need none." in text
    assert "not whether they are right" in text
    for heading in ("Class by class", "Pictures", "Trials", "mIoU, %"):
        assert heading not in text


def test_scores_without_labels_are_never_praised():
    page = page_of("unlabelled")
    assert '<span class="neutral">(+1.000)</span>' in page
    assert 'class="better"' not in page


def test_masks_that_were_given_are_told_with_their_folder(tmp_path):
    regions = {**ADAPT["regions"], "source": "imported", "folder": "/data/masks of amg"}
    page = write(tmp_path, adapt_report(regions=regions))
    assert "regions: imported" in page
    assert "imported (not SAM)" not in page
    assert "each, from /data/masks of amg" in page
    assert "each, from" not in write(tmp_path, adapt_report())


def test_oracle_and_stand_in_regions_are_said_at_the_top(tmp_path):
    regions = {**ADAPT["regions"], "source": "felzenszwalb", "note": "no SAM was given"}
    page = write(tmp_path, adapt_report(oracle=True, regions=regions, curves=[]))
    top = page[: page.index('class="cards"')]
    assert "oracle: chosen with target labels" in top
    assert "regions: felzenszwalb (not SAM)" in top
    assert "no SAM was given" in top


def test_trials_best_and_failures_are_listed():
    text = Outline(page_of("tune")).text
    assert "Best: trial 3 , chosen by mask_information among 5 trials: temperature 0.5" in text
    assert "trial 3 (best)" in text
    assert "failed: the loss became NaN" in text
    assert "with mIoU over 3 finished trials: 1.00" in text


def test_facts_name_the_checkpoint_and_unreadable_images():
    text = Outline(page_of("adapt")).text
    assert "ab" * 32 in text
    assert "foo.png : 0 bytes" in text
    assert "masks 61.2, train 100.3" in text
    assert "2931 masks in 96 images, 30.5 each" in text
    assert "train.loss.temperature 0.1" in text


def test_every_strip_is_saved_under_its_own_name(tmp_path):
    strips = [*make_strips(2), *make_strips(1)]
    page = write(tmp_path, {}, strips)
    saved = sorted(path.name for path in (tmp_path / "run" / "pictures").iterdir())
    assert saved == ["01_a_b_0.png", "02_a_b_1.png", "03_a_b_0.png"]
    assert all(f"pictures/{name}" in page for name in saved)


def test_names_that_are_no_file_names_still_give_files(tmp_path):
    strip = make_strips()[0]
    names = ["../../etc", "", "道路", "x" * 500]
    write(tmp_path, {}, [Strip(name, strip.image) for name in names])
    saved = sorted(path.name for path in (tmp_path / "run" / "pictures").iterdir())
    assert saved == ["01_etc.png", "02_image.png", "03_image.png", "04_" + "x" * 80 + ".png"]


def test_six_noisy_strips_stay_under_three_megabytes(tmp_path):
    page = write(tmp_path, {}, make_strips(6, (500, 500)))
    assert len(page.encode()) < 3_000_000
    assert page.count("data:image/") == 36


def test_a_second_report_replaces_the_first_and_leaves_nothing_behind(tmp_path):
    write(tmp_path, {"title": "first"})
    assert "second" in write(tmp_path, {"title": "second"})
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["report.html", "report.json"]


def test_pictures_take_the_smaller_encoding():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert data_uri(noise).startswith("data:image/jpeg")
    assert data_uri(np.zeros((64, 64, 3), np.uint8)).startswith("data:image/png")
