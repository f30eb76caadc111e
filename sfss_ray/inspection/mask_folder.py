"""`sfss-ray masks inspect`: the contents of a folder of masks, in numbers and in one picture."""

from __future__ import annotations

from pathlib import Path

from sfss_ray.config import Config
from sfss_ray.errors import ConfigError, DataError
from sfss_ray.inspection.mask_report import MaskReport
from sfss_ray.inspection.mask_sheet import choose_images, draw_sheet, refuse_among_images
from sfss_ray.inspection.mask_statistics import MaskStatistics
from sfss_ray.masks.bank.schema import parquet_files, read_recipe
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.regions import note_of
from sfss_ray.runtime.progress import ProgressSink, print_line
from sfss_ray.storage.files import require_on_disk, require_output_file

SHEET_FILE = "inspect.png"
MAX_PICTURES = 200
PNG_SIGNATURE = b"\x89PNG"


def inspect_masks(
    folder: Path | str,
    *,
    output_file: Path | str | None = None,
    pictures: int = 12,
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> MaskReport:
    """Report on a folder of masks, and draw some of them over their images.

    Args:
        folder: Folder of masks made by `generate_masks` or `import_masks`.
        output_file: PNG file of the contact sheet; default inspect.png in the folder.
        pictures: Images on the contact sheet; 0 draws none.
        config: `seed` chooses the images of the contact sheet.
        progress: Called with a line of text as work goes on.

    Returns:
        Counts, images with errors, how the masks were made, and the spread of their statistics.

    Raises:
        DataError: no such folder, no masks in it, a shard whose index is damaged, or a contact sheet
            in the folder of the images.
        OutputError: the contact sheet cannot be written, or would replace a file that is no PNG.
        ConfigError: `pictures` is negative or more than 200.
    """
    if not 0 <= pictures <= MAX_PICTURES:
        raise ConfigError(
            f"pictures is {pictures}: allowed is 0 to {MAX_PICTURES}, and 0 draws no contact sheet"
        )
    folder = require_on_disk(folder, "masks folder")
    unreadable_files = _unreadable_files(folder)
    sheet_file = Path(output_file or folder / SHEET_FILE)
    if pictures:
        sheet_file = require_output_file(sheet_file, "contact sheet", ".png", PNG_SIGNATURE)
    store = MaskStore(folder)
    if pictures:
        refuse_among_images(sheet_file, store)

    statistics = MaskStatistics.of_store(store, progress)
    image_ids = choose_images(statistics.drawable, pictures, (config or Config()).seed)
    sheet, not_shown = draw_sheet(store, image_ids, sheet_file)

    source = str(store.recipe.get("source", "unknown"))
    return MaskReport(
        folder=folder,
        source=source,
        note=note_of(store.recipe),
        recipe=store.recipe,
        images=len(store),
        masks=store.num_masks,
        errors=dict(sorted(store.errors.items())),
        damaged=statistics.damaged,
        unreadable_files=unreadable_files,
        without_masks=statistics.without_masks,
        spreads=statistics.spreads(),
        sheet=sheet,
        pictures=pictures,
        not_shown=not_shown,
    )


def _unreadable_files(folder: Path) -> list[str]:
    """Return the names of files that are not whole shards.

    Raises:
        DataError: there is no folder, or no whole shard in it.
    """
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"masks folder {str(folder)!r} {problem}; give a folder of masks")
    files = parquet_files(folder)
    names = [file.name for file in files if read_recipe(file) is None]
    if names and len(names) == len(files):
        raise DataError(
            f"no readable masks in {str(folder)!r}: {len(names)} files, the first is {names[0]!r}, are"
            " no whole shards; make the masks again"
        )
    return names
