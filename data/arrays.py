"""Arrays that spots are printed on: positions, neighbours, and the scale that follows from their pitch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import KDTree, cKDTree

from mmap_st.data.spots import Spots

_ROW_HEIGHT = np.sqrt(3) / 2


def is_hexagonal(row_column: NDArray[np.float64]) -> bool:
    """Whether (n, 2) rows and columns are those of a Visium array: even columns in even rows, odd in odd."""
    whole = np.array_equal(row_column, np.round(row_column))
    return bool(whole and len(row_column) > 1 and not (row_column.sum(axis=1) % 2).any())


def array_positions(row_column: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) x and y, in units of the pitch, of rows and columns of either kind of array."""
    return hexagonal_positions(row_column) if is_hexagonal(row_column) else square_positions(row_column)


def hexagonal_positions(row_column: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) x and y of Visium's rows and columns: neighbours in a row are two columns apart."""
    return np.column_stack([row_column[:, 1] / 2, row_column[:, 0] * _ROW_HEIGHT])


def square_positions(row_column: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) x and y of rows and columns of a square array."""
    return row_column[:, ::-1].copy()


# In units of the distance between adjacent spots: between the diagonal of a square array (1.414) and the
# second ring of a hexagonal one (1.732), so that a spot has up to 8 neighbours on the one and up to 6 on the
# other. Legacy ST spots deviate much from their positions, Visium's hardly: on 26 sections of her2st, 64 of
# 70,476 neighbours are wrong.
_REACH = 1.65
# A spot inside either array has at least this many adjacent spots.
_NEAREST = 4


def array_means(xy: NDArray[np.float64], use: NDArray[np.bool_] | None = None) -> sparse.csr_array:
    """Means over each spot and its neighbours on the array.

    Parameters
    ----------
    xy
        (n, 2) centres of the spots, in any unit; the array may be rotated or mirrored.
    use
        (n,) spots that were measured; the rows and columns of the others are empty. None means all.

    Returns
    -------
    (n, n) float64 whose rows sum to 1. The mean is over those neighbours that exist: of a spot without any
    it is the spot itself.
    """
    use = np.ones(len(xy), np.bool_) if use is None else use
    pairs = cKDTree(xy).query_pairs(_REACH * _spacing(xy), output_type="ndarray")
    pairs = pairs[use[pairs].all(axis=1)]
    own = np.flatnonzero(use)
    i = np.concatenate([pairs[:, 0], pairs[:, 1], own])
    j = np.concatenate([pairs[:, 1], pairs[:, 0], own])
    share = 1.0 / np.maximum(np.bincount(i, minlength=len(xy)), 1)
    return sparse.csr_array((share[i], (i, j)), shape=(len(xy), len(xy)))


def _spacing(xy: NDArray[np.float64]) -> float:
    """Distance between adjacent spots: the median over each spot's four nearest.

    The nearest one alone would underestimate it where positions scatter: by 6% on the sections of her2st.
    """
    count = min(_NEAREST, len(xy) - 1)
    if count < 1:
        return 0.0
    return float(np.median(cKDTree(xy).query(xy, k=count + 1)[0][:, 1:]))


_FEWEST_SPOTS = 6
_MOST_SPOTS = 10_000
# A fit to the array is accepted if spots lie within a fifth of the pitch of where it puts them; the distance
# between neighbours is, if nine in ten agree within 5%.
_LARGEST_MISFIT = 0.2
_LARGEST_STRETCH = (
    1.1  # of one axis over the other; beyond it, rows and columns are not positions on an array
)
_NEIGHBOURS_AGREE = 0.05
_NEIGHBOURS_SHARE = 0.9


@dataclass(frozen=True)
class MppEstimate:
    """Micrometres per pixel fitted to a slide's spots.

    Attributes
    ----------
    mpp
        Micrometres per pixel, the geometric mean over the two array axes.
    standard_error
        Its standard error, in the same unit.
    """

    mpp: float
    standard_error: float


def mpp_from_pitch(spots: Spots) -> MppEstimate | None:
    """Micrometres per pixel: the pitch divided by the pixels that it spans.

    Where the array positions of the spots are known, pixel coordinates are fitted to them: by an affine map,
    which allows rotated and mirrored arrays, with a soft L1 loss, which tolerates single misplaced spots.
    Where they are unknown, or do not explain the pixel coordinates, the pitch is taken to be the distance
    between nearest neighbours, if most spots agree on it. None if the pitch is unknown or nothing fits.
    """
    if spots.pitch_um is None or len(spots) < _FEWEST_SPOTS:
        return None
    return _from_array(spots, spots.pitch_um) or _from_neighbours(spots, spots.pitch_um)


def _from_array(spots: Spots, pitch_um: float) -> MppEstimate | None:
    if spots.array is None:
        return None
    from scipy.optimize import least_squares  # a quarter of a second, which other commands need not wait

    some = _sample(len(spots))
    array = spots.array[some] - spots.array[some].mean(axis=0)
    if np.linalg.matrix_rank(array) < 2:
        return None
    pixel = spots.xy[some] - np.median(spots.xy[some], axis=0)
    design = np.column_stack([array, np.ones(len(array))])
    start = np.linalg.lstsq(design, pixel, rcond=None)[0]
    scatter = 1.4826 * np.median(np.abs(pixel - design @ start)) + 1e-6

    def residuals(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        misfit: NDArray[np.float64] = (pixel - design @ parameters.reshape(3, 2)).ravel()
        return misfit

    fit = least_squares(residuals, start.ravel(), loss="soft_l1", f_scale=scatter)
    affine = fit.x.reshape(3, 2)
    long, short = np.linalg.svd(affine[:2], compute_uv=False)
    if not long < _LARGEST_STRETCH * short:
        return None
    pixels_per_step = float(np.sqrt(long * short))
    misfit = float(np.median(np.abs(pixel - design @ affine)))
    if misfit > _LARGEST_MISFIT * pixels_per_step:
        return None
    mpp = pitch_um / pixels_per_step
    # Standard error of one slope, propagated to the mean of two axes.
    slope_variance = scatter**2 * np.linalg.inv(array.T @ array).trace() / 2
    relative = np.sqrt(slope_variance / 2) / pixels_per_step
    return MppEstimate(mpp=mpp, standard_error=float(mpp * relative))


def _from_neighbours(spots: Spots, pitch_um: float) -> MppEstimate | None:
    distance = KDTree(spots.xy).query(spots.xy[_sample(len(spots))], k=2)[0][:, 1]
    pixels_per_step = float(np.median(distance))
    if not pixels_per_step > 0:
        return None
    near = np.abs(distance / pixels_per_step - 1) < _NEIGHBOURS_AGREE
    if near.mean() < _NEIGHBOURS_SHARE:
        return None
    relative = float(distance[near].std() / np.sqrt(near.sum()) / pixels_per_step)
    mpp = pitch_um / pixels_per_step
    return MppEstimate(mpp=mpp, standard_error=mpp * relative)


def _sample(n: int) -> NDArray[np.int64]:
    """Evenly spaced rows, as many as a fit needs."""
    return np.unique(np.linspace(0, n - 1, min(n, _MOST_SPOTS)).round().astype(np.int64))
