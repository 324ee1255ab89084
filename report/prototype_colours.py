"""Colours of prototypes: similar ones are near on the scale, where neighbours differ in lightness."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# What is used of the scale: its ends are too dark to be told from each other.
_FROM, _TO = 0.06, 0.94
# Every second prototype is drawn this much darker, and the others this much lighter.
_DARKER, _LIGHTER = 0.72, 0.18


def order_by_similarity(points: NDArray[np.float32]) -> NDArray[np.int64]:
    """Order prototypes so that neighbours in the order are similar.

    The leaves of a tree of average linkage, turned so that adjacent ones are as near as they can be
    (Bar-Joseph et al. 2001).

    Parameters
    ----------
    points
        (K, D) of the prototypes; near points are similar prototypes.

    Returns
    -------
    (K,) numbers of the prototypes, in that order.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(points) < 3:
        return np.arange(len(points))
    order: NDArray[np.int64] = leaves_list(
        linkage(points.astype(np.float64), "average", optimal_ordering=True)
    ).astype(np.int64)
    return order


def prototype_colours(order: NDArray[np.int64]) -> NDArray[np.float64]:
    """(K, 3) colours, red, green and blue from 0 to 1, of prototypes in this order of similarity."""
    from matplotlib import colormaps

    count = len(order)
    along = np.linspace(_FROM, _TO, count) if count > 1 else np.array([0.5])
    hues = colormaps["turbo"](along)[:, :3]
    hues[1::2] *= _DARKER
    hues[::2] += (1 - hues[::2]) * _LIGHTER
    colours = np.empty((count, 3))
    colours[order] = hues
    return colours
