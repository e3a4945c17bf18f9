"""Represent a measured value of a split."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """The value that a check compares with its bounds. ``detail`` explains it, where the number alone does not."""

    value: float
    detail: str = ""


def join_first(values: Sequence[str], shown: int) -> str:
    """Return the first ``shown`` values, and how many more there are."""
    return ", ".join(values[:shown]) + (f" and {len(values) - shown} more" if len(values) > shown else "")
