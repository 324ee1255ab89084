"""A Hilbert curve: an order of places in which neighbours come soon after each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ORDER = 16


def hilbert_order(xy: NDArray[np.float64], cell: float) -> NDArray[np.int64]:
    """Order in which to visit places.

    Parameters
    ----------
    xy
        (n, 2) places.
    cell
        Side of the squares that the curve passes through, in the unit of `xy`; places in one square keep
        their order.

    Returns
    -------
    (n,) indices into `xy`.
    """
    if len(xy) == 0:
        return np.empty(0, dtype=np.int64)
    cells = np.floor((xy - xy.min(axis=0)) / cell)
    # Places further apart than the curve has squares would wrap around; then the squares grow.
    cells = np.floor(cells / max(1.0, (cells.max() + 1) / 2**_ORDER)).astype(np.int64)
    return np.argsort(hilbert_distance(cells[:, 0], cells[:, 1]), kind="stable")


def hilbert_distance(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) distance along the curve of squares `x`, `y` (n,), both from 0 to 2**16 - 1.

    The classic walk down the quadrants (Hilbert 1891; Skilling 2004, AIP Conf. Proc. 707), on whole arrays.
    """
    x, y = x.copy(), y.copy()
    distance = np.zeros_like(x)
    side = 1 << (_ORDER - 1)
    while side:
        right, low = (x & side) > 0, (y & side) > 0
        distance += side * side * ((3 * right) ^ low)
        x, y = x & (side - 1), y & (side - 1)
        flipped = ~low & right
        x, y = np.where(flipped, side - 1 - x, x), np.where(flipped, side - 1 - y, y)
        x, y = np.where(low, x, y), np.where(low, y, x)
        side >>= 1
    return distance
