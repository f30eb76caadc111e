"""Measure the reading of masks: the id map of a training crop, and the size of the files.

    OMP_NUM_THREADS=1 python experiments/bench/reading.py [--data DIR]

Images have 2048x1024 pixels and 120 masks. A crop has 640x640 pixels after a random zoom and flip, as in
training. It is read from RLE strings in memory, from a file that is not cached, and from cached runs,
beside the decoder of pycocotools and the JSON of segment_anything's amg.py. The masks are drawn objects,
and with --data also Felzenszwalb regions of Cityscapes images, whose borders are more ragged than those
of SAM. The script writes results/reading_cpu.md and .json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
from mask_models import draw_masks, low_size
from pycocotools import mask as coco
from records import RESULTS, keep, machine, markdown, seconds_of
from torch.nn import functional as F

from sfss_ray.config import AugmentConfig, MaskConfig
from sfss_ray.data.augment import Geometry, draw_geometry
from sfss_ray.data.decoding import read_image
from sfss_ray.masks.bank import store as masks_store
from sfss_ray.masks.bank.cache import PaintedCache
from sfss_ray.masks.bank.painted_runs import PaintedRuns
from sfss_ray.masks.bank.painting import paint_image, paint_order
from sfss_ray.masks.bank.run_lengths import encode_masks, to_coco_strings
from sfss_ray.masks.bank.schema import write_shard
from sfss_ray.masks.bank.store import PAINTED, MaskStore
from sfss_ray.masks.regions import build_region_source, make_recipe

SIZE = (1024, 2048)
MASKS = 120
IMAGES = 8  # in the file
CROP = AugmentConfig(crop_size=(640, 640))


def drawn_records(seed: int) -> list[dict[str, Any]]:
    """Return the records of one image: drawn objects in image size, in random order."""
    low = low_size(SIZE)
    objects = draw_masks(low, 4, seed=seed).objects[:, None, : low[0], : low[1]]
    pixels = [F.interpolate(one[None], SIZE, mode="bilinear")[0, 0] > 0 for one in objects]
    return records_of([mask.numpy() for mask in pixels])


def records_of(masks: list[np.ndarray]) -> list[dict[str, Any]]:
    """As the generator describes them."""
    texts = to_coco_strings(encode_masks(masks))
    rng = np.random.default_rng(0)
    records = []
    for mask, text in zip(masks, texts, strict=True):
        x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
        records.append(
            {
                "counts": text,
                "area": int(mask.sum()),
                "bbox": [x, y, max(0, w - 1), max(0, h - 1)],
                "predicted_iou": float(np.float32(rng.uniform(0.88, 1))),
                "stability_score": float(np.float32(rng.uniform(0.95, 1))),
                "point": [x + w / 2, y + h / 2],
                "crop_box": [0, 0, SIZE[1], SIZE[0]],
            }
        )
    return records


def felzenszwalb_records(data: Path) -> list[list[dict[str, Any]]]:
    """The 120 largest regions of Cityscapes images."""
    files = sorted((data / "cityscapes_sample" / "leftImg8bit").rglob("*_leftImg8bit.png"))
    if not files:
        raise SystemExit(f"no Cityscapes image below {data}")
    recipe, checkpoint = make_recipe(MaskConfig(regions="felzenszwalb"), None)
    source = build_region_source(recipe, checkpoint, 64, "cpu")
    regions = [source(np.ascontiguousarray(read_image(file))) for file in files[:IMAGES]]
    return [sorted(one, key=lambda record: -record["area"])[:MASKS] for one in regions]


def amg_json(records: list[dict[str, Any]]) -> int:
    """Bytes of the JSON that segment_anything/scripts/amg.py --convert-to-rle writes."""
    out = [
        {
            "segmentation": {"size": list(SIZE), "counts": record["counts"]},
            "area": record["area"],
            "bbox": record["bbox"],
            "predicted_iou": record["predicted_iou"],
            "point_coords": [record["point"]],
            "stability_score": record["stability_score"],
            "crop_box": record["crop_box"],
        }
        for record in records
    ]
    return len(json.dumps(out))


def write_bank(folder: Path, images: list[list[dict[str, Any]]]) -> int:
    """A shard of these images; its bytes."""
    rows = [
        {"image_id": f"{k}", "path": "", "height": SIZE[0], "width": SIZE[1]}
        | {"masks": records, "error": None}
        for k, records in enumerate(images)
    ]
    path = folder / "masks-0.parquet"
    write_shard(path, rows, {"source": "drawn", "knobs": {}})
    return path.stat().st_size


def our_crop(store: MaskStore, geometry: Geometry, image_id: str = "0") -> np.ndarray:
    """As training reads it."""
    return store.id_crop(image_id, *geometry.nearest_pixels(SIZE))


class FullCache(PaintedCache):
    """Has no room for an image more."""

    def __init__(self) -> None:
        super().__init__(max_bytes=0)

    def _admits(self) -> bool:
        return False


def crops_from_file(folder: str, shapes: list[Geometry], full: bool) -> list[float]:
    """Seconds of a crop of each image, of which nothing is held.

    `full`: nor will it be, so that no more of it is painted than is needed.
    """
    store, seconds = MaskStore(folder), []
    for start in range(0, len(shapes), IMAGES):
        with patch.object(masks_store, "PAINTED", FullCache() if full else PaintedCache(2**28)):
            for image_id, geometry in zip(store.ids(), shapes[start:], strict=False):
                seconds.append(seconds_of(lambda i=image_id, g=geometry: our_crop(store, g, i))[0])
    return seconds


@dataclass(frozen=True)
class CocoMasks:
    """The masks of an image in their canonical form, of which nothing else is known."""

    texts: list[str]
    areas: np.ndarray
    boxes: np.ndarray

    @classmethod
    def of(cls, records: list[dict[str, Any]]) -> CocoMasks:
        texts, areas, boxes = ([r[key] for r in records] for key in ("counts", "area", "bbox"))
        return cls(texts, np.array(areas), np.array(boxes))

    def painted(self, columns: range | None = None) -> PaintedRuns:
        return paint_image(self.texts, self.areas, self.boxes, SIZE, "fine", columns)

    def crop(self, geometry: Geometry) -> np.ndarray:
        rows, columns = geometry.nearest_pixels(SIZE)
        return self.painted(range(columns.min(), columns.max() + 1)).at(rows, columns)


def coco_crop(records: list[dict[str, Any]], geometry: Geometry) -> np.ndarray:
    """Decode each mask with pycocotools and paint its window."""
    y, x, h, w = geometry.window(SIZE)
    ids = np.zeros((h, w), np.int32)
    for k in paint_order([record["area"] for record in records], "fine"):
        mask = coco.decode({"size": list(SIZE), "counts": records[k]["counts"].encode()})
        ids[mask[y : y + h, x : x + w] > 0] = k + 1
    return geometry.apply_to_ids(ids, SIZE, origin=(y, x))


def measure(images: list[list[dict[str, Any]]], crops: int, coco_crops: int) -> dict[str, Any]:
    """Return times on all images (pycocotools: on the first) and the file size."""
    rng = np.random.default_rng(1)
    shapes = [draw_geometry(CROP, SIZE, rng) for _ in range(crops)]
    canonical = [CocoMasks.of(records) for records in images]
    with tempfile.TemporaryDirectory() as folder:
        bank = write_bank(Path(folder), images)
        store = MaskStore(folder)
        # Maps are dropped while the clock runs, as in training, where each overwrites the last.
        warm = [seconds_of(lambda s=s: our_crop(store, s))[0] for s in shapes]
        maps = [our_crop(store, s) for s in shapes[:coco_crops]]
        in_part, whole = (crops_from_file(folder, shapes, full) for full in (True, False))
    turns = zip(itertools.cycle(canonical), shapes, strict=False)
    from_rle = [seconds_of(lambda m=m, s=s: m.crop(s))[0] for m, s in turns]
    from_strings = [canonical[0].crop(s) for s in shapes[:coco_crops]]
    reference = [seconds_of(lambda s=s: coco_crop(images[0], s)) for s in shapes[:coco_crops]]
    true_maps = [one for _, one in reference]
    coco_time = median(seconds for seconds, _ in reference)
    row: dict[str, Any] = {"images": len(images), "masks": len(images[0]), "crops": crops}
    times = {"from_rle": from_rle, "from_file": in_part, "from_file_to_hold": whole, "held": warm}
    for name, seconds in times.items():
        row[f"{name}_ms"] = 1000 * median(seconds)
        row[f"{name}_times_faster"] = round(coco_time / median(seconds))
    equal = [maps, from_strings]
    return row | {
        "pycocotools_ms": 1000 * coco_time,
        "equal_maps": sum(sum(map(np.array_equal, ours, true_maps)) for ours in equal),
        "compared_maps": len(equal) * len(true_maps),
        "held_kb_per_image": median(masks.painted().nbytes for masks in canonical) / 1000,
        "bank_kb_per_image": bank / 1000 / len(images),
        "json_kb_per_image": sum(map(amg_json, images)) / 1000 / len(images),
        "json_is_times_larger": round(sum(map(amg_json, images)) / bank, 2),
        **machine(),
    }


COLUMNS = (
    "images", "masks", "pycocotools_ms", "from_rle_ms", "from_rle_times_faster", "from_file_ms",
    "from_file_times_faster", "from_file_to_hold_ms", "held_ms", "held_times_faster", "equal_maps",
    "compared_maps", "held_kb_per_image", "bank_kb_per_image", "json_kb_per_image",
    "json_is_times_larger", "load",
)  # fmt: skip


def text_of(rows: dict[str, dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    lines = [
        "# Reading masks: id map of a random zoomed, mirrored 640x640 crop, 2048x1024 image",
        "",
        "Processor time of one thread, medians. pycocotools: each mask is decoded whole and its window",
        "painted. From RLE: COCO strings, boxes and areas in memory. From file: also read from Parquet",
        "(the file is in the cache of the system), as for an image that does not fit into the process.",
        "From file to hold: the whole image is painted, as for the first crop of an image. Held: any",
        "later crop of the image. A process holds up to"
        f" {PAINTED.max_bytes // 2**20} MB. JSON: as amg.py",
        "writes it. Load: load average of the machine.",
        "",
    ]
    body = [[name, *(_short(row[c]) for c in COLUMNS)] for name, row in rows.items()]
    lines += markdown(["", *(c.replace("_", " ") for c in COLUMNS)], body)
    facts = {
        f"- {r['device']}, {r['threads']} thread, torch {r['torch']}; `{r['command']}`"
        for r in rows.values()
    }
    return "\n".join([*lines, *sorted(facts)]) + "\n"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("SFSS_TEST_DATA"))
    parser.add_argument("--crops", type=int, default=200)
    parser.add_argument("--coco-crops", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = {"drawn objects": [drawn_records(seed) for seed in range(IMAGES)]}
    if arguments.data:
        cases["Felzenszwalb regions"] = felzenszwalb_records(Path(arguments.data))
    command = {"command": "python experiments/bench/reading.py"}
    rows = {
        name: measure(images, arguments.crops, arguments.coco_crops) | command
        for name, images in cases.items()
    }
    for name, row in rows.items():
        print(name, json.dumps(row))
    (RESULTS / "reading_cpu.md").write_text(text_of(keep("reading_cpu", rows)))


if __name__ == "__main__":
    main()
