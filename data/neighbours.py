"""Means over spots that lie side by side on their array."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

# Times the distance of spots side by side: between the diagonal of a square array (1.414) and the second
# ring of a hexagonal one (1.732), so that a spot has up to 8 neighbours on the one and up to 6 on the other.
# Legacy ST spots stray far from their places and Visium's hardly: on 26 sections of her2st, 64 of 70,476
# neighbours are told wrongly.
_REACH = 1.65
# At least so many lie side by side with a spot within either array.
_NEAREST = 4


def array_means(xy: NDArray[np.float64], use: NDArray[np.bool_] | None = None) -> sparse.csr_array:
    """Means over each spot and its neighbours on the array.

    Parameters
    ----------
    xy
        (n, 2) centres of the spots, in any unit: the array may be turned or mirrored.
    use
        (n,) spots that were measured; the rows and columns of others are empty. None: all.

    Returns
    -------
    (n, n) float64 whose rows sum to 1. Neighbours that are not on the slide are left out of the mean, so
    that a spot without any is its own.
    """
    use = np.ones(len(xy), np.bool_) if use is None else use
    pairs = cKDTree(xy).query_pairs(_REACH * _side(xy), output_type="ndarray")
    pairs = pairs[use[pairs].all(axis=1)]
    own = np.flatnonzero(use)
    i = np.concatenate([pairs[:, 0], pairs[:, 1], own])
    j = np.concatenate([pairs[:, 1], pairs[:, 0], own])
    share = 1.0 / np.maximum(np.bincount(i, minlength=len(xy)), 1)
    return sparse.csr_array((share[i], (i, j)), shape=(len(xy), len(xy)))


def _side(xy: NDArray[np.float64]) -> float:
    """Distance of spots side by side: the median over each spot's four nearest.

    The one nearest alone is too near where spots stray: by 6% on the sections of her2st.
    """
    count = min(_NEAREST, len(xy) - 1)
    if count < 1:
        return 0.0
    return float(np.median(cKDTree(xy).query(xy, k=count + 1)[0][:, 1:]))
