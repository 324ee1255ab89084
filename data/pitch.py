"""Micrometres per pixel from the known distance between spots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial import KDTree

from mmap_st.data.spots import Spots

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
