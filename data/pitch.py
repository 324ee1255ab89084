"""Micrometres per pixel from the known distance between spots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from mmap_st.data.spots import Spots

_FEWEST_SPOTS = 6


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
    """Fit pixel to array coordinates, robustly, and divide the pitch by the pixels that it spans.

    The fit is affine, so that a turned or mirrored array is no matter, with a soft L1 loss, so that single
    misplaced spots are none either. None where the pitch or the array is unknown, or spots are too few or
    lie on a line.
    """
    if spots.array is None or spots.pitch_um is None or len(spots) < _FEWEST_SPOTS:
        return None
    array = spots.array - spots.array.mean(axis=0)
    if np.linalg.matrix_rank(array) < 2:
        return None
    pixel = spots.xy - np.median(spots.xy, axis=0)
    design = np.column_stack([array, np.ones(len(array))])
    start = np.linalg.lstsq(design, pixel, rcond=None)[0]
    scatter = 1.4826 * np.median(np.abs(pixel - design @ start)) + 1e-6

    def residuals(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        misfit: NDArray[np.float64] = (pixel - design @ parameters.reshape(3, 2)).ravel()
        return misfit

    fit = least_squares(residuals, start.ravel(), loss="soft_l1", f_scale=scatter)
    affine = fit.x.reshape(3, 2)[:2]
    pixels_per_step = float(np.sqrt(abs(np.linalg.det(affine))))
    if not pixels_per_step > 0:
        return None
    mpp = spots.pitch_um / pixels_per_step
    # Standard error of one slope, carried over to the mean of two axes.
    slope_variance = scatter**2 * np.linalg.inv(array.T @ array).trace() / 2
    relative = np.sqrt(slope_variance / 2) / pixels_per_step
    return MppEstimate(mpp=mpp, standard_error=float(mpp * relative))
