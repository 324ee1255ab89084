"""Normal scores of a slide's embeddings: each feature by its rank among the slide's spots.

Scanner and stain change the shape of a feature's distribution, not only its mean and spread; the rank of a
spot among its slide's spots stays. Expression is not used: a slide that was never sequenced is treated
in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

from mmap_st.extract.store import Embeddings

# Ranks are among at most this many spots of a slide, evenly spaced: more hardly change them.
_MOST_SPOTS = 1_024


@dataclass(frozen=True)
class NormalScores:
    """Turns the embeddings of one slide into normal scores.

    The score of a value that has rank r among the n values of its feature is the quantile of the standard
    normal distribution at (r - 1/2) / n; equal values share their mean rank, and between two values the score
    is interpolated. A constant feature is 0.

    Attributes
    ----------
    values
        (n, M, d) float32, values of each feature in ascending order.
    scores
        (n, M, d) float32, their scores.
    """

    values: NDArray[np.float32]
    scores: NDArray[np.float32]

    def transform(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """(k, M, d) float32 scores of embeddings, or of candidates, of the same slide."""
        found = np.zeros_like(embedding, dtype=np.float32)
        if len(self.values):
            for place in np.ndindex(embedding.shape[1:]):
                column = (slice(None), *place)
                found[column] = np.interp(embedding[column], self.values[column], self.scores[column])
        return found


def fit_normal_scores(embedding: Embeddings, valid: NDArray[np.bool_]) -> NormalScores:
    """Rank the values of each feature among a slide's valid spots.

    Parameters
    ----------
    embedding
        (n, M, d) float32.
    valid
        (n,) bool.
    """
    rows = np.flatnonzero(valid)
    rows = rows[:: max(1, -(-len(rows) // _MOST_SPOTS))]
    values = np.sort(embedding[rows], axis=0)
    ranks = rankdata(values, axis=0)
    scores = ndtri((ranks - 0.5) / max(len(rows), 1)).astype(np.float32)
    return NormalScores(values, scores)
