"""Spots: measured places on a slide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import SpotsError


@dataclass(frozen=True)
class Spots:
    """Spots of one slide, in the order of its count table.

    Attributes
    ----------
    ids
        (n,) the reader's own names.
    xy
        (n, 2) float64, centres in level-0 pixels, x to the right and y down.
    array
        (n, 2) float64, position on the array that printed them, in units of the pitch; None if unknown.
    pitch_um
        Distance between neighbouring spots in micrometres; None if unknown.
    positions_without_counts, counts_without_position
        How many rows of either table have no partner in the other.
    technology
        What measured them, such as ``Visium``; None if unknown.
    mpp
        Micrometres per pixel that the spots' own files state; None if they do not.
    notes
        What the user should know of how they were read.
    """

    ids: tuple[str, ...]
    xy: NDArray[np.float64]
    array: NDArray[np.float64] | None = None
    pitch_um: float | None = None
    positions_without_counts: int = 0
    counts_without_position: int = 0
    technology: str | None = None
    mpp: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.ids:
            raise SpotsError("there are no spots; check that the spot table has rows.")
        repeated = duplicates(self.ids)
        if repeated:
            raise SpotsError(f"spot ids are not unique: {some(repeated)}; each spot needs its own id.")
        if self.xy.shape != (len(self.ids), 2):
            raise SpotsError(f"{len(self.ids)} spots have coordinates of shape {self.xy.shape}.")
        bad = ~np.isfinite(self.xy).all(axis=1)
        if bad.any():
            names = [self.ids[i] for i in np.flatnonzero(bad)]
            raise SpotsError(f"spots without a finite position: {some(names)}; correct or remove them.")

    def __len__(self) -> int:
        return len(self.ids)


def duplicates(names: Sequence[str]) -> list[str]:
    """Names that occur more than once, in order of first occurrence."""
    return [name for name, n in Counter(names).items() if n > 1]


def some(names: Sequence[str], most: int = 3) -> str:
    """``"a, b, c and 4 more"``: name a few of many."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
