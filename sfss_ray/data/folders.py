"""Folders of images and labels: listing, reading, pairing, and a split that stays the same."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from sfss_ray.data.class_sets import CITYSCAPES_19, IGNORE_INDEX, ClassSet
from sfss_ray.data.depth import White, depth_of, read_deep, tiff_size, to_8_bits, white_of
from sfss_ray.data.label_formats import Decoding, make_decoding, read_raw
from sfss_ray.data.label_names import (
    absent_splits,
    in_split,
    is_label_name,
    is_other_picture,
    pair_names,
)
from sfss_ray.data.names import printable
from sfss_ray.data.pillow import open_image
from sfss_ray.data.suffixes import LeftOut, image_suffixes, is_basic, is_still_image
from sfss_ray.errors import DataError
from sfss_ray.progress import ProgressSink

MAX_PIXELS = 200_000_000
"""Images with more pixels are refused, unless asked otherwise, rather than filling every worker's
memory."""

_ORIENTATION = 0x0112  # tag of EXIF and TIFF
# Where a PNG file may hold the orientation that Pillow applies: EXIF as a chunk or a text, or XMP.
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


@dataclass(frozen=True, order=True)
class ImageFile:
    """An image: its id (path relative to its folder, without suffix, as `printable`) and its place."""

    image_id: str
    path: Path
    white: White | None = field(default=None, compare=False)
    """Of images of more than 8 bits; the same for all of a folder."""

    def read(self, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
        """uint8 (H, W, 3) RGB; see `read_image`."""
        return read_image(self.path, max_pixels, self.white)


@dataclass(frozen=True, order=True)
class LabelledImage:
    """An image and the label map that belongs to it."""

    image_id: str
    path: Path
    label_path: Path
    decoding: Decoding | None = field(default=None, compare=False)
    """How the label map is read; None: by `read_labels`."""
    white: White | None = field(default=None, compare=False)
    """Of images of more than 8 bits; the same for all of a folder."""

    def read(self, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
        """The image, uint8 (H, W, 3) RGB; see `read_image`."""
        return read_image(self.path, max_pixels, self.white)

    def labels(self) -> np.ndarray:
        """(H, W) uint8 class indices, 255 ignored; DataError names the file and the reason."""
        if self.decoding is None:
            return read_labels(self.label_path)
        return self.decoding.read(self.label_path)


def require_folder(folder: Path | str, what: str) -> Path:
    """The folder as a Path; DataError when it is missing or no folder."""
    path = Path(folder).absolute()  # workers do not run in the folder of the caller
    if not path.exists():
        raise DataError(
            f"{what}: {str(folder)!r} does not exist; give the path of an existing folder"
        )
    if not path.is_dir():
        raise DataError(f"{what}: {str(folder)!r} is a file; give the folder that holds the images")
    return path


def _walk(folder: Path, left_out: LeftOut) -> Iterator[tuple[str, Path]]:
    """Image files below a folder with their ids; other files are counted.

    Links to folders are followed, but not to one that they lie in: that is a loop. Names are put
    together as text: with a path object for each step 100,000 names take four seconds.
    """
    top, suffixes = len(os.path.join(folder, "")), image_suffixes()
    for root, folders, names in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        folders[:] = sorted(
            f for f in folders if not f.startswith(".") and not _leads_back(folder, root, f)
        )
        below = printable(os.path.join(root, "")[top:]).replace(os.sep, "/")
        for name in names:
            if name.startswith("."):
                continue
            if not name.lower().endswith(suffixes):
                left_out.add(name)
            elif is_still_image(os.path.join(root, name)):
                yield below + printable(name.rpartition(".")[0]), Path(os.path.join(root, name))
            else:
                left_out.add_animated()


def _leads_back(top: Path, root: str, name: str) -> bool:
    """Whether a folder below `top` is a link to one of the folders on the way to it."""
    path = Path(root, name)
    if not path.is_symlink():
        return False
    way = [parent for parent in path.parents if parent == top or top in parent.parents]
    return path.resolve() in {parent.resolve() for parent in way}


def _refuse_folder(error: OSError) -> None:
    """Images of a folder that cannot be listed would be left out without a word."""
    raise DataError(
        f"folder {error.filename!r} cannot be listed ({error.strerror or error}): give it to this user"
        " to read, or take it away"
    ) from error


def _by_id(files: Iterable[tuple[str, Path]], what: str, left_out: LeftOut) -> dict[str, Path]:
    """Files by id; beside a file of a common suffix, one of another (a.png and a.gif) is left out."""
    found: dict[str, Path] = {}
    for image_id, path in files:
        other = found.get(image_id)
        if other is not None and is_basic(path) == is_basic(other):
            raise DataError(
                f"{what}: {other.name!r} and {path.name!r} in {str(path.parent)!r} differ"
                " only by their suffix; keep one of them there"
            )
        if other is None or is_basic(path):
            found[image_id] = path
        if other is not None:
            left_out.add(other.name if is_basic(path) else path.name)
    return found


def list_images(
    folder: Path | str, what: str = "target images", notes: ProgressSink | None = None
) -> list[ImageFile]:
    """All images below `folder`, sorted by id.

    notes: called with a line on the files that were left out by their suffix, where there are any.

    Raises DataError when the folder is missing, holds no image, holds Cityscapes' label maps, or two
    images of one id (a.jpg and a.png: usually a label that lies among the images).
    """
    root = require_folder(folder, what)
    left_out = LeftOut()
    found = _by_id(_walk(root, left_out), what, left_out)
    label = next((i for i in found if is_label_name(i)), None)
    if label is not None:
        raise DataError(
            f"{what}: {str(found[label])!r} is a label map and would count as an image; give the folder"
            " of the images alone (of Cityscapes leftImg8bit, or a part of it)"
        )
    line = left_out.line()
    if not found:
        raise DataError(
            f"{what}: no image in {str(root)!r}; looked for {', '.join(image_suffixes())} there and"
            f" in its folders{f' ({line})' if line else ''}"
        )
    if line and notes:
        notes(f"{what}: {line}")
    return [ImageFile(image_id, found[image_id]) for image_id in sorted(found)]


def decode_image(
    data: bytes, max_pixels: int | None = MAX_PIXELS, white: White | None = None
) -> np.ndarray:
    """Bytes of an image file -> uint8 (H, W, 3) RGB, EXIF rotation applied, alpha dropped.

    Args:
        data: The whole file.
        max_pixels: Larger images are refused; None: any number.
        white: What becomes 255 where the file has more than 8 bits and does not say so itself.

    Raises:
        DataError: the bytes are empty, truncated, not an image or too large, or what is white in an
            image of more than 8 bits is not known.
    """
    if not data:
        raise DataError("the file is empty (0 bytes)")
    depth = depth_of(data)
    if depth is not None:
        return _decode_deep(data, max_pixels, white_of(depth, white))
    try:
        with open_image(io.BytesIO(data)) as image:
            _refuse_huge(image.size, max_pixels)
            return _to_rgb(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many kinds on damaged files
        reason = str(error).replace(repr(io.BytesIO), "").split("<_io")[0].strip() or "unknown"
        raise DataError(f"cannot be read as an image ({type(error).__name__}: {reason})") from error


def _decode_deep(data: bytes, max_pixels: int | None, white: White) -> np.ndarray:
    try:
        with open_image(io.BytesIO(data)) as image:
            _refuse_huge(image.size, max_pixels)
            orientation = image.getexif().get(_ORIENTATION, 1)
            is_tiff = isinstance(image, TiffImageFile)
            image.load()  # OpenCV takes files that were cut short
    except UnidentifiedImageError:  # of the kinds that only OpenCV reads
        orientation, is_tiff = 1, True
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many kinds on damaged files
        raise DataError(f"cannot be read as an image ({type(error).__name__}: {error})") from error
    values = read_deep(data)
    _refuse_huge((values.shape[1], values.shape[0]), max_pixels)
    pixels = to_8_bits(values, white)
    # OpenCV turns TIFF files itself.
    return pixels if is_tiff else _turned(pixels, orientation)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as EXIF's orientation (1 to 8) says they are looked at."""
    flipped = pixels[:, ::-1] if orientation in (2, 4, 5, 7) else pixels
    quarter_turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(flipped, quarter_turns))


def _refuse_huge(size: tuple[int, int], max_pixels: int | None) -> None:
    if max_pixels is not None and size[0] * size[1] > max_pixels:
        raise DataError(
            f"{size[0]}x{size[1]} pixels: more than {max_pixels:,} are refused; shrink it, or raise"
            " masks.max_pixels where masks are made"
        )


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":  # JPEG 2000, which Pillow scales to 16 bits
        return to_8_bits(np.asarray(image, np.float64), White(65535.0))
    return np.array(image.convert("RGB"))


def read_image(
    path: Path | str, max_pixels: int | None = MAX_PIXELS, white: White | None = None
) -> np.ndarray:
    """Read an image file as uint8 (H, W, 3) RGB; DataError names the file and the reason."""
    try:
        return decode_image(Path(path).read_bytes(), max_pixels, white)
    except OSError as error:
        raise DataError(f"image {str(path)!r}: {error.strerror or error}") from error
    except DataError as error:
        raise DataError(f"image {str(path)!r}: {error}") from error


def image_size(path: Path | str) -> tuple[int, int]:
    """(height, width) from the file's header alone, turned as `decode_image` turns it."""
    try:
        with open_image(path) as image:
            width, height = image.size
            # Pillow decodes all of a PNG to look for an orientation: only where there may be one.
            may_turn = image.format != "PNG" or _has_any(Path(path), _PNG_ORIENTATION)
            turned = may_turn and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            if isinstance(image, TiffImageFile):  # `size` is turned already, by newer Pillows
                width, height = image.tag_v2[256], image.tag_v2[257]
    except UnidentifiedImageError as error:
        size = tiff_size(path)
        if size is None:
            raise DataError(f"image {str(path)!r}: cannot be read as an image") from error
        return size
    except Exception as error:
        raise DataError(f"image {str(path)!r}: cannot be read ({type(error).__name__})") from error
    return (width, height) if turned else (height, width)


def _has_any(path: Path, words: tuple[bytes, ...]) -> bool:
    data = path.read_bytes()
    return any(word in data for word in words)


def read_labels(path: Path | str) -> np.ndarray:
    """Read a label map as uint8 (H, W) train ids; 255 is ignored.

    The pixel value is the id (palette images: the palette index). Files named *_labelIds are
    translated from Cityscapes' labelIds.
    """
    if not Path(path).stem.endswith("_labelIds"):
        return read_raw(path)
    return make_decoding("cityscapes_label_ids", CITYSCAPES_19).read(path)


@dataclass(frozen=True)
class Matching:
    """Images and labels brought together, and those that are left over."""

    pairs: list[LabelledImage]
    images_alone: list[str]
    labels_alone: list[str]
    image_splits: dict[str, int] = field(default_factory=dict)
    """Splits of the images that the labels do not have (test), with their number of images."""
    label_splits: dict[str, int] = field(default_factory=dict)
    """Splits of the labels that the images do not have, with their number of labels."""
    notes: list[str] = field(default_factory=list)
    """What was chosen among several encodings, and what was left out by suffix, a line each."""

    def lines(self) -> list[str]:
        """The notes and what was left out, for people."""
        absent = [
            f"{number} {kind} of {split}/ are left out: the {others} have no such folder"
            for kind, others, splits in (
                ("images", "labels", self.image_splits),
                ("labels", "images", self.label_splits),
            )
            for split, number in splits.items()
        ]
        return self.notes + absent


def match_labels(
    images: Path | str, labels: Path | str, what: str = "val", format_name: str = "auto"
) -> Matching:
    """Every image with its label map, matched by id or by the naming of the known data sets.

    format_name: of labels in several encodings, those of this format are taken.
    """
    notes: list[str] = []
    listed = list_images(images, f"{what} images", notes.append)
    image_files = {file.image_id: file.path for file in listed}
    label_files = _label_files(labels, what, image_files, notes)
    found = pair_names(image_files, label_files, format_name)
    pairs = [
        LabelledImage(image, image_files[image], label_files[label])
        for image, label in found.label_of.items()
    ]
    lonely = [image for image in image_files if image not in found.label_of]
    image_splits: dict[str, int] = {}
    label_splits: dict[str, int] = {}
    if pairs:
        image_splits = absent_splits(lonely, Path(labels))
        label_splits = absent_splits(found.spare, Path(images))
    return Matching(
        pairs,
        [i for i in lonely if not in_split(i, image_splits)],
        [i for i in found.spare if not in_split(i, label_splits)],
        image_splits,
        label_splits,
        found.notes + notes,
    )


def pair_labels(
    images: Path | str, labels: Path | str, what: str = "val", format_name: str = "auto"
) -> list[LabelledImage]:
    """Every image with its label map, as `match_labels` does, and none left over.

    Raises DataError naming the first images without labels or labels without images.
    """
    matching = match_labels(images, labels, what, format_name)
    refuse_unpaired(matching, images, labels, what)
    return matching.pairs


def refuse_unpaired(
    matching: Matching, images: Path | str, labels: Path | str, what: str = "val"
) -> None:
    """DataError naming the first images without labels or labels without images."""
    lonely, spare = matching.images_alone, matching.labels_alone
    if lonely:
        notes = "".join(f" ({note})" for note in matching.notes)
        raise DataError(
            f"{what} images without labels: {_some(lonely)}; {str(labels)!r} needs a file of the same"
            f" name for each image (or remove the images){notes}"
        )
    if spare:
        raise DataError(
            f"{what} labels without images: {_some(spare)}; {str(images)!r} needs a file of the same"
            " name for each label (or remove the labels)"
        )


def _label_files(
    labels: Path | str, what: str, images: Collection[str], notes: list[str]
) -> dict[str, Path]:
    """Label maps by id; a note is added on files left out by their suffix."""
    root, left_out = require_folder(labels, f"{what} labels"), LeftOut()
    files = [f for f in _walk(root, left_out) if f[0] in images or not is_other_picture(f[0])]
    found = _by_id(files, f"{what} labels", left_out)
    line = left_out.line()
    if not found:
        raise DataError(
            f"{what} labels: no label map in {str(root)!r}; give a folder of PNG files"
            f"{f' ({line})' if line else ''}"
        )
    notes += [f"{what} labels: {line}"] if line else []
    return found


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def check_label_ids(pairs: Iterable[LabelledImage], classes: ClassSet) -> None:
    """DataError when a label map holds an id that the class set has not."""
    for item in pairs:
        ids = np.unique(item.labels())
        strange = [int(i) for i in ids if i != IGNORE_INDEX and i >= len(classes)]
        if strange:
            raise DataError(
                f"labels {str(item.label_path)!r} hold id {strange[0]}, but the model has"
                f" {len(classes)} classes ({classes.name}: 0 to {len(classes) - 1}, 255 ignored); give"
                " labels of the model's classes, or a model of the labels' classes"
            )


def split_held_out(
    images: list[ImageFile], share: float, most: int
) -> tuple[list[ImageFile], list[ImageFile]]:
    """Split images into (training, held-out), by a hash of the id: one more image moves at most one.

    At least one image is held out when share > 0 and there are two or more.
    """
    count = min(most, round(share * len(images)))
    if share > 0 and most > 0 and len(images) > 1:
        count = max(count, 1)
    by_hash = sorted(images, key=lambda f: hashlib.sha256(f.image_id.encode()).digest())
    return sorted(by_hash[count:]), sorted(by_hash[:count])


def evenly_spread(images: list[ImageFile], number: int) -> list[ImageFile]:
    """`number` images at even distances; all of them when there are no more."""
    if len(images) <= number:
        return images
    return [images[int((i + 0.5) * len(images) / number)] for i in range(number)]
