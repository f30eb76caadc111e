"""The report on a folder of masks: spreads, and lines for people."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfss_ray.inspection.mask_report import MaskReport, Spread

NAN = float("nan")


def report(**changes) -> MaskReport:
    values = {
        "folder": Path("masks"),
        "source": "sam",
        "note": "segment-anything",
        "recipe": {"source": "sam", "sam_type": "vit_b", "sam_sha256": "", "knobs": {"points": 8}},
        "images": 7,
        "masks": 21,
        "errors": {},
        "damaged": {},
        "unreadable_files": [],
        "without_masks": [],
        "spreads": {"masks_per_image": Spread(0.0, 3.0, 5.0), "area_share": Spread(0.0, 0.5, 1.0)},
    }
    return MaskReport(**(values | changes))


@pytest.mark.parametrize(
    ("values", "spread"),
    [
        ([], None),
        ([NAN], None),
        ([2.0], Spread(2.0, 2.0, 2.0)),
        ([NAN, 2.0, 1.0, 4.0], Spread(1.0, 2.0, 4.0)),
        ([4.0, 1.0], Spread(1.0, 2.5, 4.0)),
    ],
)
def test_a_spread_leaves_out_nan(values, spread):
    assert Spread.of(values) == spread


def test_a_sound_report_lists_no_case():
    lines = report().lines()
    assert report().sound
    assert lines[:7] == [
        "masks: 7 images, 21 masks",
        "regions: sam (segment-anything)",
        "made with: sam_type vit_b, points 8",
        "unreadable files: none",
        "images with an error: none",
        "images with damaged masks: none",
        "images without a mask: none",
    ]
    assert lines[-1] == "contact sheet: none: no image could be drawn"


def test_statistics_are_rounded_by_their_unit():
    lines = report().lines()
    assert "masks_per_image            0         3         5" in lines
    assert "area_share           0.00000   0.50000   1.00000" in lines
    assert "predicted_iou        unknown" in lines


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"errors": {"a": "the file is empty"}}, "  a: the file is empty"),
        ({"damaged": {"a": "its runs are wrong"}}, "  a: its runs are wrong"),
        ({"unreadable_files": ["masks-0.parquet"]}, "unreadable files: 1"),
    ],
)
def test_each_fault_makes_a_report_unsound(changes, line):
    assert not report(**changes).sound
    assert line in report(**changes).lines()


def test_images_without_a_mask_are_no_fault():
    quiet = report(without_masks=["a", "b"], sheet=Path("sheet.png"), not_shown={"b": "no file"})
    assert quiet.sound
    lines = quiet.lines()
    assert "images without a mask: 2" in lines
    assert "images not on the contact sheet: 1" in lines
    assert lines[-1] == "contact sheet: sheet.png"


def test_long_lists_are_cut_short_in_the_lines_only():
    errors = {f"{index:02}": "gone" for index in range(7)}
    result = report(errors=errors)
    assert len(result.errors) == 7
    assert "  and 2 more" in result.lines()
    assert "  06: gone" not in result.lines()
