"""`export`: a model as an ONNX file, which onnxruntime checks before it gets its name."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfss_ray.config import Config
from sfss_ray.data.group_files import ClassGroupsLike
from sfss_ray.errors import CheckpointError, ConfigError
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import SourceLike, open_source
from sfss_ray.runtime.progress import ProgressSink, print_line
from sfss_ray.storage.files import require_output_file, whole_file

if TYPE_CHECKING:
    import torch

    from sfss_ray.models.model_file import SourceModel

OPSET = 18
MIN_SIDE = 32
_ONNX_SIGNATURE = b"\x08"
"""Key of the version, the first field of each file."""
TIE = 1e-3
"""Difference of the two best logits of torch below which rounding may decide between them."""


@dataclass(frozen=True)
class ExportResult:
    """An ONNX file and the result of its check."""

    path: Path
    opset: int
    input: str
    """Name and shape of the input: RGB in [0, 1], float32."""
    output: str
    """Name and shape of the output: logits at the size of the input, float32."""
    dynamic: tuple[str, ...]
    """Axes that may have any length; the others are fixed."""
    checked_pixels: int
    """Pixels of drawn streets whose class was compared with torch's."""
    rounding_pixels: int
    """Those of them that differ only because torch's two best classes are tied; see TIE."""
    megabytes: float

    def lines(self) -> list[str]:
        """Return the result for people."""
        return [
            f"model: {self.path} ({self.megabytes:.1f} MB, opset {self.opset})",
            f"input: {self.input}, RGB in [0, 1], float32",
            f"output: {self.output}, logits",
            f"any length: {', '.join(self.dynamic)}"
            + ("" if "height" in self.dynamic else " (this network fixes height and width)"),
            f"checked with onnxruntime: the classes of {self.checked_pixels} pixels are torch's"
            + (f", {self.rounding_pixels} ties aside" if self.rounding_pixels else ""),
        ]


def export_onnx(
    model: SourceLike,
    output_file: Path | str,
    *,
    size: tuple[int, int] = (512, 1024),
    card: CardLike | None = None,
    class_groups: ClassGroupsLike | None = None,
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> ExportResult:
    """Write a model as ONNX: RGB images (B, 3, H, W) in [0, 1] -> logits (B, C, H, W).

    The file includes the card's preparation of images and the upsampling of logits. The batch may have
    any length, and where the network allows it so may height and width. onnxruntime runs the file on
    drawn streets at every kind of shape that it accepts. It is kept only if all classes are torch's.

    Args:
        model: A model file (student.pt, source.pt) or a checkpoint of any known family; in Python also
            a model in memory.
        output_file: The ONNX file, NAME.onnx; an existing ONNX file is replaced.
        size: (height, width) of the images in pixels, each 32 or more; where height and width may have
            any length, the size that is checked first.
        card: Entries that replace what the checkpoint's family says of its images: JSON file, mapping
            or Card.
        class_groups: Groups of outputs, such as camvid-11; or a JSON or YAML file, or a mapping.
        config: `seed` decides the streets that are drawn for the check.
        progress: Called with a line of text as work goes on.

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime is not installed, or `size` is below 32.
        CheckpointError: `model` is not a model file, the network cannot be exported, or the classes of
            the export are not torch's. No file is written then.
        OutputError: the file cannot be written, has another suffix, or would replace a file of another
            kind.
    """
    config = config or Config()
    if min(size) < MIN_SIDE:
        raise ConfigError(f"size is {size}: allowed is (height, width), each 32 or more pixels")
    path = require_output_file(output_file, "ONNX file", ".onnx", _ONNX_SIGNATURE)
    _require_onnx()
    source = open_source(model, card, config.source_weights, class_groups)
    for line in source.opening_lines():
        progress(line)
    network = source.load("cpu")
    with whole_file(path) as temporary:
        check = _export_checked(network, temporary, size, config.seed, progress)
    batch = "B" if "batch" in check.dynamic else "1"
    shape = ("H", "W") if "height" in check.dynamic else size
    return ExportResult(
        path=path,
        opset=OPSET,
        input=f"image ({batch}, 3, {shape[0]}, {shape[1]})",
        output=f"logits ({batch}, {len(source.classes)}, {shape[0]}, {shape[1]})",
        dynamic=check.dynamic,
        checked_pixels=check.pixels,
        rounding_pixels=check.ties,
        megabytes=path.stat().st_size / 1e6,
    )


@dataclass(frozen=True)
class _Check:
    """Result of the check of a file."""

    dynamic: tuple[str, ...]
    pixels: int
    """Pixels whose class was compared."""
    ties: int
    """Pixels that differ by rounding alone."""


def _require_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"export needs {name}, which is not installed: pip install 'sfss-ray[onnx]'"
            ) from error


def _export_checked(
    model: SourceModel, path: Path, size: tuple[int, int], seed: int, progress: ProgressSink
) -> _Check:
    """Write the most general file that passes the check: any size, or else the given size only."""
    error_text = ""
    for dynamic in (("batch", "height", "width"), ("batch",)):
        progress(f"exporting with any {', '.join(dynamic)}")
        try:
            _write(model, path, size, dynamic)
            return _check_file(model, path, _sizes(size, dynamic), dynamic, seed)
        except CheckpointError as error:
            error_text = str(error)
    raise CheckpointError(error_text)


def _sizes(size: tuple[int, int], dynamic: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return the sizes to check, as batches of 1, 2, ...; where any is allowed, an odd size too."""
    if "height" not in dynamic:
        return [size, size]
    return [size, (max(MIN_SIDE, size[0] // 2 + 5), max(MIN_SIDE, size[1] // 2 + 11))]


def _write(model: SourceModel, path: Path, size: tuple[int, int], dynamic: tuple[str, ...]) -> None:
    import torch

    axes: dict[int, Any] = {0: torch.export.Dim.DYNAMIC}
    if "height" in dynamic:
        axes |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                (torch.zeros(2, 3, *size),),
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=({**axes},),
                verbose=False,
            )
            assert program is not None
            program.save(path, external_data=False)
    except OSError:
        raise
    except Exception as error:  # the exporter raises many types of errors
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{model.name} cannot be exported to ONNX ({type(error).__name__}:"
            f" {reason[0][:160] if reason else 'no message'}): every network of this package can; a"
            " module of your own must be supported by torch.export"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the output of the exporter; the check of the file reports what matters."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check_file(
    model: SourceModel,
    path: Path,
    sizes: list[tuple[int, int]],
    dynamic: tuple[str, ...],
    seed: int,
) -> _Check:
    """Run the file and compare its classes with torch's.

    Raises:
        CheckpointError: it does not run, or its classes are not torch's.
    """
    import onnxruntime
    import torch

    checked = ties = 0
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for batch_size, size in enumerate(sizes, start=1):
            images = _streets(batch_size, size, seed)
            with torch.no_grad():
                expected = model(images).numpy()
            (logits,) = session.run(None, {"image": images.numpy()})
            ties += _count_ties(expected, np.asarray(logits), model.name)
            checked += expected.shape[0] * size[0] * size[1]
    except CheckpointError:
        raise
    except Exception as error:  # onnxruntime's errors have no common base class
        reason = str(error).strip().splitlines()[0][:160]
        raise CheckpointError(
            f"the ONNX file of {model.name} does not run ({type(error).__name__}: {reason}): it was not"
            " kept"
        ) from error
    return _Check(dynamic, checked, ties)


def _count_ties(expected: np.ndarray, logits: np.ndarray, name: str) -> int:
    """Count the pixels whose class differs from torch's by rounding alone.

    Args:
        expected: (B, C, H, W) logits of torch.
        logits: (B, C, H, W) logits of the file.
        name: The network, for errors.

    Raises:
        CheckpointError: shapes differ, a class differs otherwise, or a logit is NaN or Inf.
    """
    if logits.shape != expected.shape:
        raise CheckpointError(
            f"the ONNX file of {name} returns {logits.shape} where torch returns {expected.shape}: it"
            " was not kept"
        )
    best = np.sort(expected, axis=1)[:, -2:]
    is_tie = (best[:, -1] - best[:, 0] < TIE) if expected.shape[1] > 1 else np.ones(1, bool)
    differs = expected.argmax(1) != logits.argmax(1)
    wrong = int((differs & ~is_tie).sum())
    if wrong or not np.isfinite(logits).all():
        raise CheckpointError(
            f"the ONNX file of {name} gives another class than torch on {wrong} of {differs.size} pixels"
            f" (logits differ by up to {np.abs(logits - expected).max():.3g}): it was not kept; please"
            " report which network it is"
        )
    return int(differs.sum())


def _streets(count: int, size: tuple[int, int], seed: int) -> torch.Tensor:
    """Draw streets: (count, 3, H, W) float32, RGB in [0, 1]."""
    import cv2
    import torch

    from sfss_ray.streets.scenes import render_scene

    scenes = [render_scene("camera", seed, index).image for index in range(count)]
    images = [cv2.resize(scene, (size[1], size[0])) for scene in scenes]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
