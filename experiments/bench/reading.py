"""Reading masks back: the id map of a training crop, and the size of the files.

    OMP_NUM_THREADS=1 python experiments/bench/reading.py [--data DIR]

2048x1024 images with 120 masks; a crop is 640x640 after a random zoom and mirror, as training draws
it. Beside pycocotools' decode and the JSON that segment_anything's amg.py writes. Masks are drawn
objects; with --data also Felzenszwalb's regions of a Cityscapes image, whose borders are more
ragged than SAM's. Writes results/reading_cpu.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from mask_models import draw_masks, low_size
from pycocotools import mask as coco
from records import RESULTS, keep, machine, markdown, seconds_of
from torch.nn import functional as F

from sfss_ray.config import AugmentConfig, MaskConfig
from sfss_ray.data.augment import Geometry, draw_geometry
from sfss_ray.masks.regions import build_region_source, make_recipe
from sfss_ray.masks.rle import encode_masks, paint_order, to_coco_strings
from sfss_ray.masks.store import MaskStore, write_shard

SIZE = (1024, 2048)
MASKS = 120
IMAGES = 4  # in the file whose size is taken
CROP = AugmentConfig(crop_size=(640, 640))


def drawn_records(seed: int) -> list[dict[str, Any]]:
    """Records of one image: objects of mask_models in image size, ids in random order."""
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


def felzenszwalb_records(data: Path) -> list[dict[str, Any]]:
    """The 120 largest regions of the first Cityscapes image."""
    files = sorted((data / "cityscapes_sample" / "leftImg8bit").rglob("*_leftImg8bit.png"))
    image = cv2.imread(str(files[0])) if files else None
    if image is None:
        raise SystemExit(f"no Cityscapes image below {data}")
    recipe, checkpoint = make_recipe(MaskConfig(regions="felzenszwalb"), None)
    source = build_region_source(recipe, checkpoint, 64, "cpu")
    found = source(np.ascontiguousarray(image[..., ::-1]))
    return sorted(found, key=lambda record: -record["area"])[:MASKS]


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


def our_crop(store: MaskStore, geometry: Geometry) -> np.ndarray:
    """As training reads it."""
    window = geometry.window(SIZE)
    return geometry.apply_to_ids(store.id_map("0", window), SIZE, origin=window[:2])


def coco_crop(records: list[dict[str, Any]], geometry: Geometry) -> np.ndarray:
    """Each mask decoded by pycocotools, and only the window of it painted."""
    y, x, h, w = geometry.window(SIZE)
    ids = np.zeros((h, w), np.int32)
    for k in paint_order([record["area"] for record in records], "fine"):
        mask = coco.decode({"size": list(SIZE), "counts": records[k]["counts"].encode()})
        ids[mask[y : y + h, x : x + w] > 0] = k + 1
    return geometry.apply_to_ids(ids, SIZE, origin=(y, x))


def measure(images: list[list[dict[str, Any]]], crops: int, coco_crops: int) -> dict[str, Any]:
    """Times on the first image, file size on all."""
    rng = np.random.default_rng(1)
    shapes = [draw_geometry(CROP, SIZE, rng) for _ in range(crops)]
    with tempfile.TemporaryDirectory() as folder:
        bank = write_bank(Path(folder), images)
        store = MaskStore(folder)
        first, _ = seconds_of(lambda: store.load("0"))
        ours = [seconds_of(lambda s=s: our_crop(store, s)) for s in shapes]
    theirs = [seconds_of(lambda s=s: coco_crop(images[0], s)) for s in shapes[:coco_crops]]
    times = [median(seconds for seconds, _ in runs) for runs in (ours, theirs)]
    json_bytes = sum(amg_json(records) for records in images)
    return {
        "masks": len(images[0]),
        "crops": crops,
        "our_ms": 1000 * times[0],
        "our_ms_90th_percentile": 1000 * float(np.quantile([s for s, _ in ours], 0.9)),
        "first_load_of_a_row_ms": 1000 * first,
        "pycocotools_ms": 1000 * times[1],
        "times_faster": round(times[1] / times[0]),
        "equal_maps": sum(np.array_equal(a, b) for (_, a), (_, b) in zip(ours, theirs)),  # noqa: B905
        "compared_maps": len(theirs),
        "bank_kb_per_image": bank / 1000 / len(images),
        "json_kb_per_image": json_bytes / 1000 / len(images),
        "json_is_times_larger": round(json_bytes / bank, 2),
        **machine(),
    }


COLUMNS = (
    "masks", "our_ms", "our_ms_90th_percentile", "first_load_of_a_row_ms", "pycocotools_ms",
    "times_faster", "equal_maps", "compared_maps", "bank_kb_per_image", "json_kb_per_image",
    "json_is_times_larger",
)  # fmt: skip


def text_of(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "# Reading masks: id map of a random zoomed, mirrored 640x640 crop, 2048x1024 image",
        "",
        "Processor time of one thread, medians. pycocotools: each mask decoded whole, the window of",
        "it painted; ours: the row is in memory after its first load. JSON: as amg.py writes it.",
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("SFSS_TEST_DATA"))
    parser.add_argument("--crops", type=int, default=200)
    parser.add_argument("--coco-crops", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = {"drawn objects": [drawn_records(seed) for seed in range(IMAGES)]}
    if arguments.data:
        cases["Felzenszwalb regions"] = [felzenszwalb_records(Path(arguments.data))]
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
