"""What surrounds a spot: sparse averages over its neighbours on the slide."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

# Weights beyond this many widths of the Gaussian are left out: together they are under 5%.
_REACH = 2.5


def spot_pitch(xy: NDArray[np.float64]) -> float:
    """Median distance of a spot to its nearest neighbour, in the units of `xy`; 1 for fewer than 2 spots."""
    if len(xy) < 2:
        return 1.0
    nearest = cKDTree(xy).query(xy, k=2)[0][:, 1]
    apart = nearest[nearest > 0]
    return float(np.median(apart)) if len(apart) else 1.0


def gaussian_neighbours(
    xy: NDArray[np.float64], use: NDArray[np.bool_], width: float, pitch: float
) -> sparse.csr_array:
    """Averages over neighbours, nearer ones counting more.

    Parameters
    ----------
    xy
        (n, 2) centres of the spots.
    use
        (n,) spots that may be averaged; the rows and columns of others are empty.
    width
        Standard deviation of the Gaussian, in spot pitches.
    pitch
        Distance of neighbouring spots, in the units of `xy`.

    Returns
    -------
    (n, n) float32 whose rows sum to 1; a spot takes part in its own average.
    """
    rows = np.flatnonzero(use)
    if not len(rows):
        return sparse.csr_array((len(xy), len(xy)), dtype=np.float32)
    tree = cKDTree(xy[rows])
    pairs = tree.query_pairs(_REACH * width * pitch, output_type="ndarray")
    i = np.concatenate([pairs[:, 0], pairs[:, 1], np.arange(len(rows))])
    j = np.concatenate([pairs[:, 1], pairs[:, 0], np.arange(len(rows))])
    squared = ((xy[rows[i]] - xy[rows[j]]) ** 2).sum(axis=1) / pitch**2
    weight = np.exp(-squared / (2 * width**2))
    total = np.bincount(i, weight, minlength=len(rows))
    return sparse.csr_array(
        ((weight / total[i]).astype(np.float32), (rows[i], rows[j])), shape=(len(xy), len(xy))
    )
