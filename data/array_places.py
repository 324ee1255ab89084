"""Rows and columns of spots on the array that printed them, `array_row` and `array_col` of other tools."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmap_st.data.arrays import hexagonal_positions, square_positions
from mmap_st.data.spots import Spots

# Ids that name their place: of grids and Visium HD; of legacy ST and joined transcripts, whose x comes first.
_ROW_THEN_COLUMN = (re.compile(r"r(\d{4,})c(\d{4,})"), re.compile(r"s_\d+um_(\d+)_(\d+)-\d+"))
_COLUMN_THEN_ROW = (re.compile(r"(\d+)x(\d+)"), re.compile(r"x(-?\d+)y(-?\d+)_[\d.]+um"))
# Of these, those of squares that touch: Visium HD, and what was joined to squares.
_SQUARES = (_ROW_THEN_COLUMN[1], _COLUMN_THEN_ROW[1])
_TOLERANCE = 1e-3


def are_squares(ids: Sequence[str]) -> bool:
    """Whether spots are squares that touch, by their names: bins, not spots that were printed."""
    return bool(ids) and any(all(map(pattern.fullmatch, ids)) for pattern in _SQUARES)


def array_indices(ids: Sequence[str], spots: Spots | None = None) -> NDArray[np.int32] | None:
    """Row and column of each spot on its array.

    In a hexagonal array neighbours in a row are two columns apart, as Space Ranger counts them.

    Parameters
    ----------
    ids
        (n,) names of the spots, which name their place in many formats.
    spots
        The same spots, in any order, as their reader gives them. None: not known.

    Returns
    -------
    (n, 2) row and column; None where they are not known.
    """
    named = _named(ids)
    return named if named is not None or spots is None else _placed(ids, spots)


def _named(ids: Sequence[str]) -> NDArray[np.int32] | None:
    for patterns, step in ((_ROW_THEN_COLUMN, 1), (_COLUMN_THEN_ROW, -1)):
        for pattern in patterns:
            found = [pattern.fullmatch(name) for name in ids]
            if ids and all(found):
                pairs = np.array([match.groups()[::step] for match in found if match], np.float64)
                return _whole(pairs)
    return None


def _placed(ids: Sequence[str], spots: Spots) -> NDArray[np.int32] | None:
    """The inverse of `hexagonal_positions` or `square_positions`, whichever the array follows."""
    if spots.array is None or not set(ids) <= set(spots.ids):
        return None
    place = {name: i for i, name in enumerate(spots.ids)}
    array = spots.array[[place[name] for name in ids]]
    height = hexagonal_positions(np.array([[1.0, 0.0]]))[0, 1]
    for pairs, positions in (
        (array[:, ::-1], square_positions),
        (np.column_stack([array[:, 1] / height, 2 * array[:, 0]]), hexagonal_positions),
    ):
        rounded = pairs.round()
        if np.abs(positions(rounded) - array).max(initial=0.0) < _TOLERANCE:
            return _whole(rounded)
    return None


def _whole(pairs: NDArray[np.float64]) -> NDArray[np.int32] | None:
    fits = np.abs(pairs).max(initial=0.0) <= np.iinfo(np.int32).max
    return pairs.astype(np.int32) if fits else None
