"""Summaries of a folder of masks: counts, exit codes and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from mask_rows import ellipses, image_row, write_rows

from sfss_ray.config import MaskConfig
from sfss_ray.data.folders import ImageFile
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.schema import CONCEPTS
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.regions import IMPORTED, NOTES
from sfss_ray.masks.summary import HOW_TO_GET_MASKS, MaskSummary, summarise


def summary_with(num_errors: int) -> MaskSummary:
    errors = {f"image{k:03}": f"reason {k}" for k in range(num_errors)}
    return MaskSummary("masks", "sam", "", 200, 0, 0, 0.0, errors)


@pytest.fixture
def store(tmp_path: Path) -> MaskStore:
    rows = [image_row(f"drive/{k}", ellipses(k, number=k + 1)) for k in range(3)]
    broken = [image_row("broken", [], error="empty file"), image_row("torn", [], error="torn")]
    write_rows(tmp_path, [*rows, *broken])
    return MaskStore(tmp_path)


def files(*image_ids: str) -> list[ImageFile]:
    return [ImageFile(image_id, Path(f"/images/{image_id}.png")) for image_id in image_ids]


def test_only_the_images_of_the_run_count(store):
    summary = summarise(store, files("drive/0", "drive/2", "torn"), "sam", 2, 1.5)
    assert (summary.images, summary.masks, summary.errors) == (3, 1 + 3, {"torn": "torn"})
    assert (summary.made, summary.seconds, summary.folder) == (2, 1.5, store.folder)
    assert (summary.source, summary.note) == ("sam", NOTES["sam"])


def test_an_unknown_source_is_reported_as_such(store):
    summary = summarise(store, files("drive/0"), "random", 0, 0.0)
    assert summary.note == "a source that this version does not know"


def test_a_run_in_which_every_image_failed_is_refused(store):
    with pytest.raises(DataError, match="none of the 2 images has masks; 'broken': empty file"):
        summarise(store, files("torn", "broken"), "sam", 0, 0.0)


@pytest.mark.parametrize(("num_errors", "code"), [(0, 0), (1, 11), (89, 99), (150, 99)])
def test_the_exit_code_counts_failed_images_up_to_89(num_errors, code):
    assert summary_with(num_errors).exit_code == code


def test_strict_runs_name_the_first_failed_image():
    summary_with(0).require_all()
    with pytest.raises(DataError, match=r"2 of 200 .* \(first: 'image000': reason 0\): repair or"):
        summary_with(2).require_all()


def test_every_region_source_has_advice_for_runs_without_masks():
    made_in_other_ways = {IMPORTED, CONCEPTS}
    assert HOW_TO_GET_MASKS.keys() | made_in_other_ways == NOTES.keys()
    for advice in HOW_TO_GET_MASKS.values():
        settings = [word.removeprefix("masks.") for word in advice.split() if "masks." in word]
        assert settings
        assert all(hasattr(MaskConfig(), setting.strip(",")) for setting in settings)
