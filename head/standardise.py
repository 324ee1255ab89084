"""Standardisation of embeddings: within each slide, which takes away what staining and scanning add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmap_st.extract.embeddings import BLOCK_BYTES, Embeddings, row_blocks

# A spread below this is that of a constant column.
_SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True)
class Standard:
    """Mean and spread of one slide's embeddings.

    Attributes
    ----------
    mean
        (M, d) float64.
    scale
        (M, d) float64, 1 / standard deviation; 0 for columns that do not vary.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    def of(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """(k, M, d) embeddings in units of the slide's own mean and spread."""
        standardised = np.empty_like(embedding)
        # One magnification after another: a float64 copy of all would be the greatest array of a fit.
        for m, (mean, scale) in enumerate(zip(self.mean, self.scale, strict=True)):
            standardised[:, m] = (embedding[:, m] - mean) * scale
        return standardised


def fit_standard(embedding: Embeddings, valid: NDArray[np.bool_], block_bytes: int = BLOCK_BYTES) -> Standard:
    """Mean and standard deviation over a slide's valid spots, read in blocks of rows.

    No expression is used, so that a slide that was never sequenced is treated the same.
    """
    count = 0
    mean, squares = np.zeros((2, *embedding.shape[1:]))
    for _, rows in row_blocks(embedding, np.flatnonzero(valid), block_bytes):
        block, before = embedding[rows], count
        count += len(rows)
        for m in range(len(mean)):
            values = block[:, m].astype(np.float64)
            own = values.mean(axis=0)
            apart = own - mean[m]
            # Moments of two parts make those of both (Chan, Golub and LeVeque 1983).
            squares[m] += ((values - own) ** 2).sum(axis=0) + apart**2 * (before * len(rows) / count)
            mean[m] += apart * (len(rows) / count)
    spread = np.sqrt(squares / max(count, 1))
    return Standard(mean, np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > _SMALLEST_SPREAD))
