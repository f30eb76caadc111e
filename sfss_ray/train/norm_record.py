"""The choice of BatchNorm statistics in progress files and messages. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STATISTICS_SHARE, CONSISTENCY = "statistics_share", "view_consistency"
"""Entries of the record: the chosen share of the target's statistics, and share -> consistency."""


def describe_choice(record: Mapping[str, Any]) -> str:
    """Return one line for the user on a record of `NormChoice.as_record`."""
    scores = ", ".join(
        f"{float(share):.0%} {score:.3f}" for share, score in record[CONSISTENCY].items()
    )
    share = record[STATISTICS_SHARE]
    chosen = f"{share:.0%} target statistics" if share else "the source model's statistics"
    return f"BatchNorm: {chosen} (consistency over views by share of the target's: {scores})"
