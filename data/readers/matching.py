"""Matching the rows of a spot table to those of a count table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmap_st.data.spots import Spots, some
from mmap_st.errors import SpotsError


def in_order_of_counts(spots: Spots, wanted: Sequence[str], spot_path: Path, count_path: Path) -> Spots:
    """The spots that have counts, in the order of the count table; the others are counted.

    Raises
    ------
    SpotsError
        If the two tables share no id.
    """
    row_of = {name: row for row, name in enumerate(spots.ids)}
    ids = tuple(name for name in wanted if name in row_of)
    if not ids:
        raise SpotsError(
            f"no spot id is in both {count_path} (such as {some(wanted)}) and {spot_path}"
            f" (such as {some(spots.ids)}); check that the two tables belong together."
        )
    rows = np.array([row_of[name] for name in ids])
    return replace(
        spots,
        ids=ids,
        xy=spots.xy[rows],
        array=None if spots.array is None else spots.array[rows],
        positions_without_counts=len(spots) - len(ids),
        counts_without_position=len(wanted) - len(ids),
    )
