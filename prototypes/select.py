"""Selection of a spot's prototypes among its slide's candidates: a pure function."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mmap_st.extract.embeddings import BLOCK_BYTES, Embeddings, row_blocks
from mmap_st.prototypes.candidates import selection_space


def selected_count(candidates: int, number: int | None = None, share: float = 0.5) -> int:
    """L: `number` where it is fixed, else ceil(share * K); never above K (adaptive in the paper: 0.5 K)."""
    return min(candidates, number if number is not None else math.ceil(share * candidates))


def select_prototypes(
    embedding: Embeddings, centre: NDArray[np.float32], count: int, block_bytes: int = BLOCK_BYTES
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
    block_bytes
        Size of the blocks in which spots are read.

    Returns
    -------
    (n, K) bool with L True a row. Spots with NaN get none.
    """
    centres = selection_space(centre)
    mask = np.zeros((embedding.shape[0], len(centre)), np.bool_)
    for _, rows in row_blocks(embedding, np.arange(len(mask)), block_bytes):
        # All rows of the space have the same length, so the dot product orders as the cosine does.
        similarity = selection_space(embedding[rows]) @ centres.T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
        finite = np.isfinite(similarity).all(axis=1)
        mask[rows[:, None], nearest] = finite[:, None]
    return mask
