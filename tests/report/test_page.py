"""The page on disk: self-contained, escaped, complete when parts are missing."""

import functools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from report_samples import (
    ADAPT,
    TUNE,
    adapt_report,
    change_row,
    change_trial,
    record_of,
    tune_report,
    unlabelled_report,
)

from sfss_ray.report.page import data_uri, render_page, write_report
from sfss_ray.report.pictures import Strip
from sfss_ray.report.report_record import (
    WORSE,
    ClassSetFacts,
    ExternalFacts,
    GroupFacts,
    ImageError,
    RunRecord,
    ScoreRow,
    Verdict,
)


class Outline(HTMLParser):
    """Collects the references, tags and visible text of a page."""

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
    samples = {"adapt": adapt_report, "tune": tune_report, "unlabelled": unlabelled_report}
    return render_page(samples[kind]())


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


def test_a_decrease_is_marked_as_worse(tmp_path):
    report = change_row(adapt_report(curves=()), 1, miou=30.0)
    assert '<span class="worse">(-8.1)</span>' in write(tmp_path, report)


def test_the_page_requests_nothing_from_outside(tmp_path):
    page = write(tmp_path, tune_report(), make_strips())
    outline = Outline(page)
    assert not {"script", "link", "iframe", "object"} & set(outline.tags)
    for reference in outline.references:
        assert reference.startswith(("data:image/", "#", "pictures/"))
    assert not re.search(r"https?://|@import", page)


def test_names_from_outside_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    report = tune_report(
        title=evil,
        errors=(ImageError(evil, evil),),
        config={evil: evil},
        class_set=ClassSetFacts(evil, (evil, "b", "c")),
        score_name=evil,
    )
    report = change_trial(change_row(report, 1, name=evil), 0, name=evil)
    strip = make_strips()[0]
    strip = Strip(f'"{evil}', strip.image, None, {evil: strip.labels}, strip.labels)
    page = write(tmp_path, report, [strip])
    assert "<script" not in page
    assert evil in Outline(page).text


def test_the_json_file_holds_the_record_without_nan(tmp_path):
    report = change_row(adapt_report(curves=()), 0, miou=float("nan"))
    write(tmp_path, report)
    text = (tmp_path / "run" / "report.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == report.to_json()


def test_nan_scores_are_dashes_on_the_page(tmp_path):
    report = change_row(adapt_report(curves=()), 1, miou=float("nan"))
    text = Outline(write(tmp_path, report)).text
    assert "38.1 → -" in text
    assert "nan" not in text.lower().replace("became nan", "")


def test_any_part_may_be_missing():
    for missing in ADAPT:
        values = {key: value for key, value in ADAPT.items() if key not in (missing, "curves")}
        report = record_of(values, rows=(ScoreRow("source-only", miou=38.1),))
        assert "</html>" in render_page(report), missing


@pytest.mark.parametrize("missing", ["class_set", "rows", "best_trial"])
def test_trials_are_shown_without(missing):
    dropped = (missing, "score_name", "curves")
    report = record_of({key: value for key, value in TUNE.items() if key not in dropped})
    assert "trial 5" in render_page(report)


def test_an_empty_report_says_that_nothing_was_scored(tmp_path):
    assert "Nothing was scored." in write(tmp_path, RunRecord())


def test_sections_without_data_are_left_out():
    text = Outline(page_of("unlabelled")).text
    assert "No labels were given: all scores below are label-free." in text
    assert "not whether they are correct" in text
    for heading in ("IoU per class", "Pictures", "Trials", "mIoU, %"):
        assert heading not in text


def test_label_free_changes_are_neutral():
    page = page_of("unlabelled")
    assert '<span class="neutral">(+1.000)</span>' in page
    assert 'class="better"' not in page


def test_given_masks_are_named_with_their_folder(tmp_path):
    regions = replace(adapt_report().regions, source="imported", folder="/data/masks of amg")
    page = write(tmp_path, adapt_report(regions=regions))
    assert "masks: imported" in page
    assert "imported (not SAM)" not in page
    assert "each, from /data/masks of amg" in page
    assert "each, from" not in write(tmp_path, adapt_report())


def test_external_knowledge_is_named_at_the_top_and_among_the_facts(tmp_path):
    facts = ExternalFacts("SAM 3 prompted with class names", "folder/sam3", "ab" * 32, masks=310)
    page = write(tmp_path, adapt_report(external_knowledge=facts, curves=()))
    top = page[: page.index('class="cards"')]
    assert "external knowledge: SAM 3 prompted with class names voted" in top
    assert "<th>external knowledge</th>" in page
    assert "folder/sam3" in page
    assert "310 masks with classes" in page
    assert "external knowledge" not in page_of("adapt")


def test_an_oracle_and_masks_without_sam_are_warned_of_at_the_top(tmp_path):
    regions = replace(adapt_report().regions, source="felzenszwalb", note="no SAM was given")
    page = write(tmp_path, adapt_report(oracle=True, regions=regions, curves=()))
    top = page[: page.index('class="cards"')]
    assert "oracle: chosen with target labels" in top
    assert "masks: felzenszwalb (not SAM)" in top
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
    page = write(tmp_path, RunRecord(), strips)
    saved = sorted(path.name for path in (tmp_path / "run" / "pictures").iterdir())
    assert saved == ["01_a_b_0.png", "02_a_b_1.png", "03_a_b_0.png"]
    assert all(f"pictures/{name}" in page for name in saved)


def test_any_image_id_becomes_a_file_name(tmp_path):
    strip = make_strips()[0]
    names = ["../../etc", "", "道路", "x" * 500]
    write(tmp_path, RunRecord(), [Strip(name, strip.image) for name in names])
    saved = sorted(path.name for path in (tmp_path / "run" / "pictures").iterdir())
    assert saved == ["01_etc.png", "02_image.png", "03_image.png", "04_" + "x" * 80 + ".png"]


def test_six_noisy_strips_stay_under_three_megabytes(tmp_path):
    page = write(tmp_path, RunRecord(), make_strips(6, (500, 500)))
    assert len(page.encode()) < 3_000_000
    assert page.count("data:image/") == 36


def test_a_second_report_replaces_the_first_and_leaves_nothing_behind(tmp_path):
    write(tmp_path, RunRecord(title="first"))
    assert "second" in write(tmp_path, RunRecord(title="second"))
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["report.html", "report.json"]


def test_pictures_take_the_smaller_encoding():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert data_uri(noise).startswith("data:image/jpeg")
    assert data_uri(np.zeros((64, 64, 3), np.uint8)).startswith("data:image/png")


def test_class_groups_and_unmatched_classes_are_shown(tmp_path):
    groups = (
        GroupFacts("road", ("road",)),
        GroupFacts("car", ("car", "truck")),
        GroupFacts("train", ("train",)),
    )
    facts = replace(adapt_report().class_set, groups=groups, dropped=("background",))
    labels = replace(adapt_report().labels, note="truck has no counterpart")
    page = write(tmp_path, adapt_report(class_set=facts, labels=labels))
    text = Outline(page).text
    assert "class groups road car = car + truck train dropped: background" in text
    assert '<p class="notice">truck has no counterpart</p>' in page
    assert "class groups" not in page_of("adapt")


def test_the_verdict_is_the_first_line_of_the_page(tmp_path):
    reason = "With labels, mIoU falls, and a class loses more than half of its IoU: <fence>."
    page = write(tmp_path, adapt_report(verdict=Verdict(WORSE, reason)))
    body = Outline(page[page.index("<body>") :]).text
    assert body.startswith(f"Worse: keep the source model. {reason} Adaptation of X to Y")
    assert "half of its IoU: &lt;fence&gt;." in page
    assert '<p class="verdict' not in write(tmp_path, adapt_report())


def test_cards_and_rows_say_which_direction_is_better(tmp_path):
    page = write(tmp_path, adapt_report())
    assert page.count("higher is better") == 3
    report = change_row(adapt_report(), 1, entropy=0.2)
    assert write(tmp_path, report).count("lower is better") == 1
