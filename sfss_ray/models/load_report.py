"""What became of every tensor of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sfss_ray.errors import CheckpointError

OWN_FAMILY = "model file of sfss_ray"
COUNTERS = "num_batches_tracked"
"""BatchNorm's counter of batches: no weight, and absent from files of frozen BatchNorm."""


@dataclass(frozen=True)
class LoadReport:
    """How a file fits a network. Names are those of the network, `unused` those of the file."""

    family: str
    network: str
    matched: tuple[str, ...] = ()
    """Loaded."""
    missing: tuple[str, ...] = ()
    """Weights of the network that the file has not: the file is refused."""
    unexpected: tuple[str, ...] = ()
    """Of the file, unknown to the network, not loaded."""
    wrong_shape: tuple[str, ...] = ()
    """In both, but of another shape: the file is refused."""
    unused: tuple[str, ...] = ()
    """Of the file, known and not needed: auxiliary heads, EMA copies, counters."""
    classes_from: str = "the file"
    """What the class names were taken from."""
    notes: tuple[str, ...] = ()
    """What a user should know about this file, a sentence each."""

    def summary(self) -> str:
        """One line for people."""
        counts = f"{len(self.matched)} tensors matched, {len(self.missing)} missing"
        counts += f", {len(self.unexpected)} unexpected, {len(self.wrong_shape)} of wrong shape"
        return f"{self.family} -> {self.network}: {counts}, {len(self.unused)} not needed"


def compare(
    family: str,
    network: str,
    given: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    unused: tuple[str, ...] = (),
) -> LoadReport:
    """Hold the tensors of a file against those of a network."""
    both = [name for name in wanted if name in given]
    wrong = [name for name in both if given[name].shape != wanted[name].shape]
    return LoadReport(
        family,
        network,
        matched=tuple(name for name in both if name not in wrong),
        missing=tuple(n for n in wanted if n not in given and not n.endswith(COUNTERS)),
        unexpected=tuple(name for name in given if name not in wanted),
        wrong_shape=tuple(
            f"{name} is {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
            for name in wrong
        ),
        unused=unused,
    )


def refuse_unfit(report: LoadReport, path: object, advice: str) -> None:
    """CheckpointError when a weight of the backbone or the classifier is missing or misshapen."""
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
