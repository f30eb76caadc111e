"""Records of runs: a folder is resumed only with the same settings and the same input files."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sfss_ray.config import flatten
from sfss_ray.data.content import Content, read_contents, read_manifest, write_manifest
from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.errors import ResumeError
from sfss_ray.inputs.request import Inputs, Request
from sfss_ray.runtime.progress import ProgressSink, silent
from sfss_ray.runtime.run_claim import RunClaim, claimed
from sfss_ray.runtime.run_folder import claim, refuse_other_run
from sfss_ray.storage.files import lasting_place
from sfss_ray.storage.places import Place

MANIFEST_FILE = "inputs.parquet"
"""Size, time and hash of every input file of a run, beside its record."""


def hash_of_ids(images: Sequence[ImageFile | LabelledImage]) -> str:
    """Return the SHA-256 of the sorted image ids."""
    return hash_of_names(image.image_id for image in images)


def hash_of_names(names: Iterable[str]) -> str:
    """Return the SHA-256 of sorted names."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def labelled_files(role: str, pairs: Sequence[LabelledImage]) -> dict[str, Place]:
    """Return the files of labelled images by name, such as 'val images/ID' for the role 'val'."""
    images = {f"{role} images/{pair.image_id}": pair.path for pair in pairs}
    return images | {f"{role} labels/{pair.image_id}": pair.label_path for pair in pairs}


def input_files(inputs: Inputs) -> dict[str, Place]:
    """Return every file whose content decides the result, by a name that survives moved folders."""
    files = {f"target images/{image.image_id}": image.path for image in inputs.images}
    files |= labelled_files("val", inputs.labelled)
    for shard in inputs.masks.local_shards() if inputs.masks is not None else ():
        files[f"masks/{shard.name}"] = shard
    return files


def run_record(request: Request, inputs: Inputs) -> dict[str, Any]:
    """Return everything that decides the result: config but `compute`, source model, images, masks."""
    knobs, groups = flatten(inputs.config), inputs.source.class_groups
    record = {name: value for name, value in knobs.items() if not name.startswith("compute.")}
    record |= {
        "kind": request.kind,
        "inputs.source_sha256": inputs.source.sha256,
        "inputs.card": inputs.source.card.to_dict(),
        "inputs.class_groups": groups.line() if groups else None,
        "inputs.images": len(inputs.images),
        "inputs.image_ids_sha256": hash_of_ids(inputs.images),
        "inputs.white_level": next((i.white.value for i in inputs.images if i.white), None),
        "inputs.labelled_images": len(inputs.labelled),
    }
    if inputs.concepts is not None:
        record["inputs.concepts_sha256"] = inputs.concepts.recipe.sam_sha256
    if inputs.recipe is not None:
        return record | {"inputs.sam_sha256": inputs.recipe.sam_sha256}
    assert inputs.masks is not None
    recipe, images = inputs.masks.recipe, inputs.images
    return record | {
        "inputs.sam_sha256": recipe.get("sam_sha256", ""),
        "inputs.masks_source": recipe.get("source", "unknown"),
        "inputs.masks_knobs": recipe.get("knobs", {}),
        "inputs.masks": inputs.masks.count(image.image_id for image in images),
        # Shards on this machine are compared by their contents, see `input_files`.
        "inputs.remote_masks_sha256": hash_of_names(inputs.masks.remote_listing()),
    }


def unchanged_contents(
    folder: Place, files: Mapping[str, Place], progress: ProgressSink = silent
) -> dict[str, Content]:
    """Return the contents of input files, after a check against those that the run began with.

    Args:
        folder: The run's folder; nothing is compared where it has no manifest.
        files: The run's input files by name.
        progress: Called with a line of text while many files are read.

    Raises:
        ResumeError: files were replaced since then; the message has their number and the first name.
    """
    recorded = read_manifest(folder / MANIFEST_FILE)
    current = read_contents(files, recorded, progress)
    replaced = [
        name
        for name, content in current.items()
        if name in recorded and content.sha256 != recorded[name].sha256
    ]
    if replaced:
        raise ResumeError(
            f"{len(replaced)} of {len(files)} input files were changed since the run in {str(folder)!r}"
            f" began (first: {replaced[0]!r}): give another output folder, or restore the former files"
        )
    return current


def claim_run(
    output_dir: Place | str,
    record: Mapping[str, Any],
    files: Mapping[str, Place],
    file_contents: Mapping[str, Content] | None = None,
    progress: ProgressSink = silent,
) -> Place:
    """Claim a folder for a run, or resume the run in it with the same record and input files.

    Args:
        output_dir: The run's folder.
        record: Everything else that decides the result.
        files: Input files by name.
        file_contents: Contents of `files`, where they were read before.
        progress: Called with a line of text while many files are read.

    Raises:
        ResumeError: see `claim` and `unchanged_contents`.
        OutputError: see `claim`.
    """
    folder = lasting_place(output_dir)
    refuse_other_run(folder, record)
    if file_contents is None:
        file_contents = unchanged_contents(folder, files, progress)
    folder = claim(folder, record)
    if file_contents != read_manifest(folder / MANIFEST_FILE):
        write_manifest(folder / MANIFEST_FILE, file_contents)
    return folder


@contextlib.contextmanager
def claimed_run(request: Request, inputs: Inputs, progress: ProgressSink) -> Iterator[RunClaim]:
    """Claim the output folder of a request for the block: no other driver writes to its address.

    Raises:
        ResumeError, OutputError: see `claimed` and `claim_run`.
    """
    with claimed(lasting_place(request.output_dir), progress) as run:
        claim_inputs(request, inputs, progress)
        yield run


def claim_inputs(request: Request, inputs: Inputs, progress: ProgressSink) -> Place:
    """Claim the output folder of a request with its checked inputs; see `claim_run`."""
    record, files = run_record(request, inputs), input_files(inputs)
    return claim_run(request.output_dir, record, files, inputs.contents, progress)
