"""A report on how the tensors of a checkpoint fit a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sfss_ray.errors import CheckpointError

MODEL_FILE_FAMILY = "model file of sfss_ray"
BATCH_COUNTERS = "num_batches_tracked"
"""BatchNorm's batch counters. They are not weights, and files of frozen BatchNorm do not have them."""


@dataclass(frozen=True)
class LoadReport:
    """How the tensors of a checkpoint fit a network.

    Names are those of the network, except in `unused`, which has the names of the file.
    """

    family: str
    network: str
    matched: tuple[str, ...] = ()
    """Tensors that were loaded."""
    missing: tuple[str, ...] = ()
    """Weights of the network that the file lacks. Any of these refuses the file."""
    unexpected: tuple[str, ...] = ()
    """Tensors of the file that the network does not know. They are not loaded."""
    wrong_shape: tuple[str, ...] = ()
    """Tensors whose shapes differ. Any of these refuses the file."""
    unused: tuple[str, ...] = ()
    """Known tensors that are not needed: auxiliary heads, EMA copies, counters."""
    classes_from: str = "the file"
    """Where the class names came from."""
    notes: tuple[str, ...] = ()
    """Sentences that a user should read about this file."""

    def summary(self) -> str:
        """Return the counts in one line."""
        counts = f"{len(self.matched)} tensors matched, {len(self.missing)} missing"
        counts += f", {len(self.unexpected)} unexpected, {len(self.wrong_shape)} of wrong shape"
        return f"{self.family} -> {self.network}: {counts}, {len(self.unused)} not needed"


def compare(
    family: str,
    network: str,
    checkpoint: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    unused: tuple[str, ...] = (),
) -> LoadReport:
    """Compare the tensors of a checkpoint with the state dict of a network.

    Args:
        family: The checkpoint's family, for people.
        network: A key of NETWORKS, or `custom`.
        checkpoint: The file's tensors under the network's names.
        expected: The network's own state dict.
        unused: Tensors of the file that are known and not needed.
    """
    shared = [name for name in expected if name in checkpoint]
    wrong = [name for name in shared if checkpoint[name].shape != expected[name].shape]
    absent = [name for name in expected if name not in checkpoint]
    return LoadReport(
        family,
        network,
        matched=tuple(name for name in shared if name not in wrong),
        missing=tuple(name for name in absent if not name.endswith(BATCH_COUNTERS)),
        unexpected=tuple(name for name in checkpoint if name not in expected),
        wrong_shape=tuple(
            f"{name} is {tuple(checkpoint[name].shape)}, not {tuple(expected[name].shape)}"
            for name in wrong
        ),
        unused=unused,
    )


def require_fit(report: LoadReport, path: object, advice: str) -> None:
    """Raise CheckpointError if a weight of the network is missing or has another shape.

    Args:
        report: The comparison of the file with the network.
        path: The file, for the message.
        advice: What the user should do, the end of the message.
    """
    if not report.missing and not report.wrong_shape:
        return
    faults = []
    if report.missing:
        faults.append(f"{len(report.missing)} tensors missing, first {report.missing[0]!r}")
    if report.wrong_shape:
        faults.append(f"{len(report.wrong_shape)} of wrong shape, first {report.wrong_shape[0]}")
    if report.unexpected:
        faults.append(f"{len(report.unexpected)} unexpected, first {report.unexpected[0]!r}")
    raise CheckpointError(
        f"source model {str(path)!r} does not fit network {report.network!r} of the family"
        f" {report.family!r} ({'; '.join(faults)}): {advice}"
    )
