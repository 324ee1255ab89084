"""Arrays that spots are printed on: places, neighbours, and the scale that their pitch gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import least_squares
from scipy.spatial import KDTree, cKDTree

from mmap_st.data.spots import Spots

_ROW_HEIGHT = np.sqrt(3) / 2


def is_hexagonal(row_column: NDArray[np.float64]) -> bool:
    """Whether (n, 2) rows and columns number a Visium array: in even rows even columns, in odd rows odd."""
    whole = np.array_equal(row_column, np.round(row_column))
    return bool(whole and len(row_column) > 1 and not (row_column.sum(axis=1) % 2).any())


def array_units(row_column: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) x and y of rows and columns of either array, by how they are numbered."""
    return hexagonal(row_column) if is_hexagonal(row_column) else square(row_column)


def hexagonal(row_column: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) x and y of Visium's rows and columns: neighbours in a row are two columns apart."""
    return np.column_stack([row_column[:, 1] / 2, row_column[:, 0] * _ROW_HEIGHT])


def square(row_column: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) x and y of rows and columns of a square array."""
    return row_column[:, ::-1].copy()


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


_FEWEST_SPOTS = 6
_MOST_SPOTS = 10_000
# A fit to the array counts if spots lie within a fifth of the pitch of where it puts them; neighbours count
# if nine in ten have the same distance to within 5%.
_LARGEST_MISFIT = 0.2
_LARGEST_STRETCH = 1.1  # one axis over the other: more, and rows and columns are numbers of another kind
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
    """Divide the pitch by the pixels that it spans.

    Where the place of the spots on their array is known, pixel are fitted to array coordinates: affine, so
    that a turned or mirrored array is no matter, with a soft L1 loss, so that single misplaced spots are none
    either. Where it is not known, or does not explain the positions, the pitch is the distance between
    nearest neighbours, if most spots agree on it. None where the pitch is unknown, or nothing fits.
    """
    if spots.pitch_um is None or len(spots) < _FEWEST_SPOTS:
        return None
    return _from_array(spots, spots.pitch_um) or _from_neighbours(spots, spots.pitch_um)


def _from_array(spots: Spots, pitch_um: float) -> MppEstimate | None:
    if spots.array is None:
        return None
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
    # Standard error of one slope, carried over to the mean of two axes.
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
    """Evenly chosen rows: as many as a fit needs, however many bins there are."""
    return np.unique(np.linspace(0, n - 1, min(n, _MOST_SPOTS)).round().astype(np.int64))
