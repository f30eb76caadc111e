"""Scanning of labelled pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from dataset_files import ids_of, plain
from image_files import encode, noise, put

from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.data.folders import LabelledImage
from sfss_ray.data.label_formats import make_decoding
from sfss_ray.data.pairing import pair_labels
from sfss_ray.data.scan import inspect_pair, scan_pairs

DECODING = make_decoding("train_ids", CITYSCAPES_19)


def decoded_pairs(root: Path) -> list[LabelledImage]:
    pairs = pair_labels(root / "images", root / "labels")
    return [replace(pair, decoding=DECODING) for pair in pairs]


def test_sizes_and_raw_ids_are_counted(tmp_path: Path):
    ids = ids_of(3, 3, 255, size=(6, 9))
    (pair,) = decoded_pairs(plain(tmp_path, ids))
    facts = inspect_pair(pair)
    assert facts.image_size == facts.label_size == (6, 9)
    assert not facts.sizes_differ
    assert facts.histogram.shape == (256,)
    assert {i: int(n) for i, n in enumerate(facts.histogram) if n} == {3: 36, 255: 18}
    assert facts.errors == ()


def test_different_sizes_are_reported_only_if_both_are_known(tmp_path: Path):
    root = plain(tmp_path, ids_of(0))
    put(root / "labels" / "0.png", ids_of(0, size=(6, 8)))
    (pair,) = decoded_pairs(root)
    assert inspect_pair(pair).sizes_differ
    put(root / "labels" / "0.png", b"a letter")
    facts = inspect_pair(pair)
    assert facts.label_size is None
    assert not facts.sizes_differ


def test_both_files_of_a_pair_may_be_damaged(tmp_path: Path):
    root = plain(tmp_path, ids_of(0))
    (pair,) = decoded_pairs(root)
    put(pair.path, b"a letter")
    put(pair.label_path, b"a letter")
    facts = inspect_pair(pair)
    assert [error.split(" ")[0] for error in facts.errors] == ["image", "labels"]
    assert facts.histogram.sum() == 0


def test_damaged_pixels_are_found_only_when_they_are_read(tmp_path: Path):
    root = plain(tmp_path, ids_of(0, size=(64, 64)))
    (pair,) = decoded_pairs(root)
    data = encode(noise(64, 64))
    put(pair.path, data[: len(data) // 2])
    assert inspect_pair(pair).errors == ()
    assert "truncated" in inspect_pair(pair, read_pixels=True).errors[0]


def test_pairs_are_scanned_in_order_beyond_one_chunk(tmp_path: Path):
    pairs = decoded_pairs(plain(tmp_path, *(ids_of(i % 19, size=(2, 2)) for i in range(70))))
    facts = list(scan_pairs(pairs))
    assert [entry.pair for entry in facts] == pairs
    brightest = [int(np.flatnonzero(entry.histogram)[0]) for entry in facts]
    assert brightest == [int(pair.image_id) % 19 for pair in pairs]
    assert list(scan_pairs([])) == []
