"""Spatially variable genes: Moran's I over each slide's spots."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

# Spots lie on square or hexagonal grids: these are the nearest around one.
_NEIGHBOURS = 6


def neighbour_weights(xy: NDArray[np.float64]) -> sparse.csr_array:
    """(n, n) weights of each spot's 6 nearest others (fewer on a tiny slide), 1 in all a row."""
    n = len(xy)
    count = min(_NEIGHBOURS, n - 1)
    if count < 1:
        return sparse.csr_array((n, n), dtype=np.float64)
    # Spots in one place are each other's neighbours: the spot itself is looked for, not taken to be first.
    _, nearest = cKDTree(xy).query(xy, k=count + 1)
    own = nearest == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True
    columns = nearest[~own]
    rows = np.repeat(np.arange(n), count)
    return sparse.csr_array((np.full(len(rows), 1.0 / count), (rows, columns)), shape=(n, n))


def morans_i(values: sparse.csr_array, weights: sparse.csr_array) -> NDArray[np.float64]:
    """(g,) Moran's I of (n, g) values: the correlation of a gene with itself at neighbouring spots.

    With row sums of 1 it is sum_ij w_ij z_i z_j / sum_i z_i^2, z being values less their mean
    (Moran 1950). A gene that does not vary has 0.
    """
    n = values.shape[0]
    mean = np.asarray(values.sum(axis=0)).ravel() / max(n, 1)
    around = weights @ values
    column_sum = np.asarray(weights.sum(axis=0)).ravel()
    row_sum = np.asarray(weights.sum(axis=1)).ravel()
    product = np.asarray(values.multiply(around).sum(axis=0)).ravel()
    covariance = (
        product - mean * (values.T @ column_sum) - mean * (values.T @ row_sum) + mean**2 * row_sum.sum()
    )
    variation = np.asarray(values.multiply(values).sum(axis=0)).ravel() - n * mean**2
    varies = variation > 1e-9 * np.maximum(n * mean**2, 1e-12)
    found: NDArray[np.float64] = np.divide(covariance, variation, out=np.zeros(len(mean)), where=varies)
    return found
