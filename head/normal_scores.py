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

from mmap_st.extract.store import Embeddings

# Ranks are among at most this many spots of a slide, evenly spaced: more hardly change them.
_MOST_SPOTS = 1_024
# Numbers that are transformed at a time: float64 copies of a block of rows would be most of a fit's memory.
_MOST_NUMBERS = 1 << 20


@dataclass(frozen=True)
class NormalScores:
    """Turns the embeddings of one slide into normal scores.

    The score of a value that has rank r among the n values of its feature is the quantile of the standard
    normal distribution at (r - 1/2) / n; equal values share their mean rank, and between two values the score
    is interpolated. A constant feature is 0.

    Attributes
    ----------
    values
        (M * d, n) float64, values of each feature in ascending order.
    scores
        (M * d, n) float64, their scores.
    """

    values: NDArray[np.float64]
    scores: NDArray[np.float64]

    def transform(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """(k, M, d) float32 scores of embeddings, or of candidates, of the same slide."""
        flat = embedding.reshape(len(embedding), len(self.values))
        found = np.zeros(flat.shape, np.float32)
        at_a_time = max(1, _MOST_NUMBERS // max(len(flat), 1))
        for start in range(0, len(self.values) if self.values.size else 0, at_a_time):
            # Features as rows, each in ascending order, on which `interp` is several times as fast.
            columns = np.ascontiguousarray(flat[:, start : start + at_a_time].T, np.float64)
            order = np.argsort(columns, axis=1)
            ascending = np.take_along_axis(columns, order, axis=1)
            for number, column in enumerate(ascending):
                values, scores = self.values[start + number], self.scores[start + number]
                columns[number, order[number]] = np.interp(column, values, scores)
            found[:, start : start + at_a_time] = columns.T
        return found.reshape(embedding.shape)


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
    features = int(np.prod(embedding.shape[1:]))
    values = np.sort(np.ascontiguousarray(embedding[rows].reshape(len(rows), features).T), axis=1)
    scores = np.tile(ndtri((np.arange(len(rows)) + 0.5) / max(len(rows), 1)), (features, 1))
    tied = (values[:, 1:] == values[:, :-1]).any(axis=1)
    if tied.any():
        from scipy.stats import rankdata  # takes a quarter of a second

        scores[tied] = ndtri((rankdata(values[tied], axis=1) - 0.5) / max(len(rows), 1))
    return NormalScores(values.astype(np.float64), scores)
