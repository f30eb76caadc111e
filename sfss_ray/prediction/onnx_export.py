"""Export of a model to ONNX, checked with onnxruntime before the file appears under its name."""

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
from sfss_ray.errors import CheckpointError, ConfigError
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import SourceLike, open_source
from sfss_ray.runtime.progress import ProgressSink, print_line
from sfss_ray.storage.files import require_lasting, whole_file

if TYPE_CHECKING:
    import torch

    from sfss_ray.models.model_file import SourceModel

OPSET = 18
LEAST_SIDE = 32
TIE = 1e-3
"""Where the two best logits of torch are nearer than this, rounding may decide between them."""


@dataclass(frozen=True)
class ExportResult:
    """An ONNX file and what was checked of it."""

    path: Path
    opset: int
    input: str
    """Name and shape of the input: RGB in [0, 1], float32."""
    output: str
    """Name and shape of the output: logits at the size of the input, float32."""
    dynamic: tuple[str, ...]
    """Axes of any length; the others are fixed."""
    checked_pixels: int
    """Pixels of drawn streets whose class was compared with torch's."""
    rounding_pixels: int
    """Of them, those that differ where torch's two best classes are as good as equal."""
    megabytes: float

    def lines(self) -> list[str]:
        """The result for people."""
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
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> ExportResult:
    """Write a model as ONNX: RGB images (B, 3, H, W) in [0, 1] -> logits (B, C, H, W).

    The card's preparation of images and the scaling of logits up are in the file. The batch may be of
    any length, height and width too where the network allows. What was written is run by onnxruntime on
    drawn streets, at every kind of shape it says to take, and kept only if the classes are torch's.

    Args:
        model: A model file (student.pt, source.pt) or a checkpoint of any known family; in Python also
            a model in memory.
        output_file: The ONNX file; one that is there is replaced.
        size: (height, width) of the images, pixels, each 32 or more; where height and width may have any
            length, the size that is checked first.
        card: Entries that replace what the checkpoint's family says of its images: JSON file, mapping
            or Card.
        config: `seed` draws the streets of the check.
        progress: Called with a line of text as work goes on.

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime is not installed, or a size below 32.
        CheckpointError: no model file, a network that cannot be exported, or an export whose classes
            are not torch's: no file is left then.
        OutputError: the file cannot be written.
    """
    config = config or Config()
    if min(size) < LEAST_SIDE:
        raise ConfigError(f"size is {size}: allowed is (height, width), each 32 or more pixels")
    _require_onnx()
    source = open_source(model, card, config.source_weights)
    loaded = source.load("cpu")
    path = require_lasting(output_file, "ONNX file")
    with whole_file(path) as temporary:
        result = _export_checked(loaded, temporary, size, config.seed, progress)
    batch = "B" if "batch" in result.dynamic else "1"
    shape = ("H", "W") if "height" in result.dynamic else size
    return ExportResult(
        path=path,
        opset=OPSET,
        input=f"image ({batch}, 3, {shape[0]}, {shape[1]})",
        output=f"logits ({batch}, {len(source.classes)}, {shape[0]}, {shape[1]})",
        dynamic=result.dynamic,
        checked_pixels=result.checked,
        rounding_pixels=result.ties,
        megabytes=path.stat().st_size / 1e6,
    )


@dataclass(frozen=True)
class _Checked:
    dynamic: tuple[str, ...]
    checked: int
    ties: int


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
) -> _Checked:
    """Write the most general file that passes the check."""
    refused = ""
    for dynamic in (("batch", "height", "width"), ("batch",)):
        progress(f"exporting with any {', '.join(dynamic)}")
        try:
            _write(model, path, size, dynamic)
            return _check(model, path, _sizes(size, dynamic), dynamic, seed)
        except CheckpointError as error:
            refused = str(error)
    raise CheckpointError(refused)


def _sizes(size: tuple[int, int], dynamic: tuple[str, ...]) -> list[tuple[int, int]]:
    """Sizes to check, as batches of 1, 2, ...: where any is allowed, one of odd numbers too."""
    if "height" not in dynamic:
        return [size, size]
    return [size, (max(LEAST_SIDE, size[0] // 2 + 5), max(LEAST_SIDE, size[1] // 2 + 11))]


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
    except Exception as error:  # the exporter raises errors of many kinds
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{model.name} cannot be exported to ONNX ({type(error).__name__}:"
            f" {reason[0][:160] if reason else 'no message'}): networks of this package can; a module"
            " of your own must be one that torch.export takes"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own lines: what matters of them is checked after it."""
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


def _check(
    model: SourceModel,
    path: Path,
    sizes: list[tuple[int, int]],
    dynamic: tuple[str, ...],
    seed: int,
) -> _Checked:
    """Run the file; CheckpointError where it fails, or where its classes are not torch's."""
    import onnxruntime
    import torch

    checked = ties = 0
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for number, size in enumerate(sizes, start=1):
            images = _streets(number, size, seed)
            with torch.no_grad():
                expected = model(images).numpy()
            (found,) = session.run(None, {"image": images.numpy()})
            ties += _compare(expected, np.asarray(found), model.name)
            checked += expected.shape[0] * size[0] * size[1]
    except CheckpointError:
        raise
    except Exception as error:  # onnxruntime's errors share no base of their own
        reason = str(error).strip().splitlines()[0][:160]
        raise CheckpointError(
            f"the ONNX file of {model.name} does not run ({type(error).__name__}: {reason}): it was not"
            " kept"
        ) from error
    return _Checked(dynamic, checked, ties)


def _compare(expected: np.ndarray, found: np.ndarray, name: str) -> int:
    """Number of pixels whose class differs by rounding alone; CheckpointError for any other."""
    if found.shape != expected.shape:
        raise CheckpointError(
            f"the ONNX file of {name} returns {found.shape} where torch returns {expected.shape}: it"
            " was not kept"
        )
    best = np.sort(expected, axis=1)[:, -2:]
    near = (best[:, -1] - best[:, 0] < TIE) if expected.shape[1] > 1 else np.ones(1, bool)
    differs = expected.argmax(1) != found.argmax(1)
    wrong = int((differs & ~near).sum())
    if wrong or not np.isfinite(found).all():
        raise CheckpointError(
            f"the ONNX file of {name} gives another class than torch on {wrong} of {differs.size} pixels"
            f" (logits differ by up to {np.abs(found - expected).max():.3g}): it was not kept; tell us"
            " which network it is"
        )
    return int(differs.sum())


def _streets(number: int, size: tuple[int, int], seed: int) -> torch.Tensor:
    """Drawn streets (number, 3, H, W), RGB in [0, 1]."""
    import cv2
    import torch

    from sfss_ray.streets.scenes import render_scene

    scenes = [render_scene("camera", seed, index).image for index in range(number)]
    images = [cv2.resize(scene, (size[1], size[0])) for scene in scenes]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
