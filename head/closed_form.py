"""Ridge on blocks of features, for any choice of training folds, from sums that are made once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Matrix = NDArray[np.float64]
Weight = NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """Training rows of one slide and one fold.

    Attributes
    ----------
    features
        (n, p) float32.
    target
        (n, G) float32; a column is NaN where the slide lacks the gene.
    fold
        Number of the fold that they belong to.
    """

    features: NDArray[np.float32]
    target: NDArray[np.float32]
    fold: int


class FoldedRidge:
    """Ridge without any of the folds, at any strength.

    Features and targets are centred within each group of rows, so that slides differ in nothing but their
    spots. Where there are fewer rows than features, the rows' Gram matrix is made once and its parts are
    solved; else each group's moments are added up. Both give the same weights.

    Parameters
    ----------
    groups
        Rows of all slides; a gene that a group lacks is fitted on the others.
    """

    def __init__(self, groups: Sequence[Rows]) -> None:
        self._fold = np.array([group.fold for group in groups])
        present = np.array([np.isfinite(group.target).any(axis=0) for group in groups])
        # Genes that the same groups have are solved together: mostly, that is all of them.
        self._patterns, self._pattern_of = np.unique(present, axis=1, return_inverse=True)
        x = [_centred(group.features) for group in groups]
        self._y = [_centred(np.nan_to_num(group.target)) for group in groups]
        self._width = x[0].shape[1]
        self._dual = sum(map(len, x)) <= self._width
        if self._dual:
            self._x = np.concatenate(x)
            self._gram = [self._x @ self._x.T]
            self._group = np.repeat(np.arange(len(groups)), [len(rows) for rows in x])
            self._target = np.concatenate(self._y)
        else:
            self._gram = [rows.T @ rows for rows in x]
            self._moment = [rows.T @ y for rows, y in zip(x, self._y, strict=True)]

    def weight(self, alpha: float, without: Collection[int] = ()) -> Weight:
        """(p, G) float32 coefficients at strength `alpha`, fitted on all folds but those in `without`."""
        kept = ~np.isin(self._fold, list(without))
        weight = np.zeros((self._width, len(self._pattern_of)), np.float32)
        for number, pattern in enumerate(self._patterns.T):
            genes = np.flatnonzero(self._pattern_of == number)
            groups = np.flatnonzero(kept & pattern)
            if len(groups):
                weight[:, genes] = self._solve(alpha, groups, genes)
        return weight

    def _solve(self, alpha: float, groups: NDArray[np.int64], genes: NDArray[np.int64]) -> Matrix:
        if self._dual:
            rows = np.flatnonzero(np.isin(self._group, groups))
            gram = self._gram[0][np.ix_(rows, rows)]
            solved = _solve_positive(gram, alpha, self._target[np.ix_(rows, genes)])
            weight: Matrix = self._x[rows].T @ solved
            return weight
        gram = np.add.reduce([self._gram[g] for g in groups])
        moment = np.add.reduce([self._moment[g][:, genes] for g in groups])
        return _solve_positive(gram, alpha, moment)


def _centred(values: NDArray[np.float32]) -> Matrix:
    centred: Matrix = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    return centred


def _solve_positive(gram: Matrix, alpha: float, right: Matrix) -> Matrix:
    """(gram + alpha)^-1 right."""
    shifted = gram.copy()
    shifted.flat[:: len(gram) + 1] += alpha
    solved: Matrix = cho_solve(cho_factor(shifted, overwrite_a=True, check_finite=False), right)
    return solved
