"""Which image each entry of a mask source belongs to, by their names.

A name is a path without suffix, with `/` between folders. Entries and images belong together if their
names are equal, or if one name is the end of the other: `val2017/a` and `a`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sfss_ray.data.file_names import printable

# Image ids write bytes that are not UTF-8 as \xNN; all other backslashes are those of Windows.
_WINDOWS_SLASH = re.compile(r"\\(?!x[0-9a-f]{2})")


@dataclass
class NameMatching:
    """Entries of a mask source, matched with images."""

    entry_of: dict[str, str] = field(default_factory=dict)
    """Image id -> name of its entry."""
    ambiguous: dict[str, str] = field(default_factory=dict)
    """Image id -> why its entry is not certain."""
    spare: list[str] = field(default_factory=list)
    """Names of entries without an image."""


def name_of_file(text: str) -> str:
    """Return the name of a file that a mask source states: of any system, without suffix."""
    path = _WINDOWS_SLASH.sub("/", printable(text)).removeprefix("./")
    folder, slash, name = path.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    return folder + slash + (stem if dot and stem else name)


def match_names(
    names: Iterable[str],
    image_ids: Iterable[str],
    image_name: Callable[[str], str] = lambda image_id: image_id,
) -> NameMatching:
    """Match names of entries with images.

    Args:
        names: of the entries, distinct.
        image_ids: of the images.
        image_name: the part of an image id that names of entries are compared with.
    """
    images: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for image_id in image_ids:
        for name in dict.fromkeys((image_id, image_name(image_id))):
            images[_last_part(name)].append((name, image_id))
    exact: dict[str, list[str]] = defaultdict(list)
    partial: dict[str, list[str]] = defaultdict(list)
    rivals: dict[str, int] = {}
    names = list(names)
    for name in names:
        candidates = images.get(_last_part(name), [])
        same = {image_id for full, image_id in candidates if full == name}
        ends = {image_id for full, image_id in candidates if _is_end(full, name)}
        rivals[name] = len(same or ends)
        for image_id in same or ends:
            (exact if same else partial)[image_id].append(name)

    # An equal name decides, whatever else an image's name ends with.
    entries_of = {**partial, **exact}
    matching = NameMatching()
    for image_id, entries in entries_of.items():
        _choose(matching, image_id, entries, rivals)
    used = {name for entries in entries_of.values() for name in entries}
    matching.spare = sorted(name for name in names if name not in used)
    return matching


def _choose(
    matching: NameMatching, image_id: str, entries: list[str], rivals: dict[str, int]
) -> None:
    """Store the entry of an image, or why it is not certain."""
    name = entries[0]
    if len(entries) > 1:
        matching.ambiguous[image_id] = (
            f"{name!r} and {entries[1]!r} may both belong to it: put masks into folders as the images"
            " are"
        )
    elif rivals.get(name, 1) > 1:
        matching.ambiguous[image_id] = (
            f"{name!r} may belong to each of {rivals[name]} images named {_last_part(name)!r}: put masks"
            " into folders as the images are"
        )
    else:
        matching.entry_of[image_id] = name


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]


def _is_end(first: str, second: str) -> bool:
    """Return whether one of two names is the end of the other, in whole folders."""
    return first.endswith(f"/{second}") or second.endswith(f"/{first}")
