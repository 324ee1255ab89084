"""Strengths of ridge, one for each axis of expression."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Errors = NDArray[np.float64]
Vector = NDArray[np.float64]


def nondecreasing(errors: Errors) -> NDArray[np.int64]:
    """Choose one strength for each axis, none weaker than that of the axis before it.

    Axes come by falling variance, and what is left of the later ones is mostly noise: that strengths do not
    fall keeps an axis from being fitted because its error was small by chance. Least sum of errors, exact, by
    dynamic programming over the axes.

    Parameters
    ----------
    errors
        (r, s) squared error of each axis at each strength, weakest first.

    Returns
    -------
    (r,) int64, the number of each axis' strength; of equally good choices the weakest.
    """
    axes, count = errors.shape
    best = np.zeros((axes, count), np.int64)  # of the axis before, if this one has at most this strength
    total = np.zeros(count)
    for axis in range(axes):
        falls = np.flatnonzero(np.r_[True, total[1:] < np.minimum.accumulate(total)[:-1]])
        best[axis] = falls[np.searchsorted(falls, np.arange(count), "right") - 1]
        total = total[best[axis]] + errors[axis]
    chosen = np.empty(axes, np.int64)
    number = int(np.argmin(total))
    for axis in reversed(range(axes)):
        chosen[axis] = number
        number = int(best[axis, number])
    return chosen


def row_weights(
    libraries: list[NDArray[np.float64] | None], power: float
) -> list[NDArray[np.float64] | None]:
    """Weights of spots: their library size to a power, with mean 1 over all spots.

    Targets of a spot with few counts are noisier.

    Parameters
    ----------
    libraries
        (n,) library size of each slide's spots, NaN for spots that do not count; None: not known, and no spot
        of any slide is weighted.
    power
        0: all weigh the same.

    Returns
    -------
    (n,) float64 for each slide; None for all of them where they are not weighted.
    """
    known = [library for library in libraries if library is not None]
    if not power or len(known) < len(libraries):
        return [None] * len(libraries)
    weights = [np.maximum(library, 1.0) ** power for library in known]
    mean = float(np.nanmean(np.concatenate(weights))) if weights else 0.0
    return [weight / mean for weight in weights] if mean > 0 else [None] * len(libraries)
