"""Selection of a spot's prototypes among its slide's candidates: a pure function."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mmap_st.prototypes.candidates import selection_space


def selected_count(candidates: int, number: int | None = None, share: float = 0.5) -> int:
    """L: `number` where it is fixed, else ceil(share * K); never above K (adaptive in the paper: 0.5 K)."""
    return min(candidates, number if number is not None else math.ceil(share * candidates))


def select_prototypes(
    embedding: NDArray[np.float32], centre: NDArray[np.float32], count: int
) -> NDArray[np.bool_]:
    """Mark the candidates nearest to each spot by cosine similarity, ties by index.

    Parameters
    ----------
    embedding
        (n, M, d) spots.
    centre
        (K, M, d) candidates of the same slide.
    count
        L, how many each spot gets.

    Returns
    -------
    (n, K) bool with L True a row. Spots with NaN get none.
    """
    spots, centres = selection_space(embedding), selection_space(centre)
    # All rows of the space have the same length, so the dot product orders as the cosine does.
    similarity = spots @ centres.T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    mask = np.zeros(similarity.shape, np.bool_)
    np.put_along_axis(mask, nearest, True, axis=1)
    mask[~np.isfinite(similarity).all(axis=1)] = False
    return mask
