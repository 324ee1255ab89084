"""Closed-form ridge for any choice of training folds, from sums that are computed once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Matrix = NDArray[np.float64]
Array = NDArray[np.float32]


@dataclass(frozen=True)
class _Group:
    """A group of rows: their fold, (r,) which targets they have, and whether the rows come centred."""

    fold: int
    present: NDArray[np.bool_]
    centred: bool


@dataclass
class _Moments:
    """Sums (p, p) and (p, r) over the groups of one fold with the same targets, each group centred."""

    group: _Group
    gram: Matrix
    moment: Matrix


@dataclass
class _Open:
    """The sums of the group whose rows are being added to its moments."""

    number: int
    moments: _Moments
    total_x: Matrix
    total_y: Matrix
    weight: float = 0.0


class RidgeBuilder:
    """Collects training rows, group by group and chunk by chunk, for a `FoldedRidge`.

    Targets and features are centred within each group of rows, which removes differences between slides.
    While there are no more rows than features, all are stored; then moments are summed by fold and by the
    targets that are present, and no row is stored.

    Parameters
    ----------
    centre
        False: the features come centred.
    """

    def __init__(self, *, centre: bool = True) -> None:
        self._centre = centre
        self._groups: list[_Group] = []
        self._held: list[tuple[int, Array, Array, Matrix | None]] | None = []
        self._moments: list[_Moments] = []
        self._open: _Open | None = None

    def start_group(self, fold: int, present: NDArray[np.bool_], *, centred: bool = False) -> None:
        """Start the rows of one slide and one fold.

        Parameters
        ----------
        fold
            Number of the fold that they belong to.
        present
            (r,) bool, targets that the slide has; the others are fitted on other slides.
        centred
            Whether features and targets come centred: over the whole slide, of which this is a part.
        """
        self._groups.append(_Group(fold, present, centred))

    def add(self, features: Array, target: Array, weight: Matrix | None = None) -> None:
        """Add rows to the group that was started last.

        Parameters
        ----------
        features
            (k, p) float32.
        target
            (k, r) float32; targets that the slide does not have may be NaN.
        weight
            (k,) float64, of the squared error of each row; None: 1.
        """
        number = len(self._groups) - 1
        if self._held is None:
            self._sum(number, features, target, weight)
            return
        self._held.append((number, features, target, weight))
        if sum(len(x) for _, x, _, _ in self._held) > features.shape[1]:
            held, self._held = self._held, None
            for rows in held:
                self._sum(*rows)

    def build(self) -> FoldedRidge:
        """Return ridge on all rows that were added."""
        if self._held is None:
            self._close()
            return FoldedRidge([part.group for part in self._moments], self._moments)
        row_group = np.concatenate([np.full(len(x), number) for number, x, _, _ in self._held])
        x = np.concatenate([x for _, x, _, _ in self._held]).astype(np.float64)
        y = np.nan_to_num(np.concatenate([y for _, _, y, _ in self._held]).astype(np.float64))
        weighted = any(weight is not None for *_, weight in self._held)
        weight = np.concatenate([np.ones(len(x)) if w is None else w for _, x, _, w in self._held])
        for number in np.unique(row_group):
            if self._groups[number].centred:
                continue
            rows = row_group == number
            own = weight[rows] if weighted else None
            if self._centre:
                x[rows] -= np.average(x[rows], axis=0, weights=own)
            y[rows] -= np.average(y[rows], axis=0, weights=own)
        if weighted:
            x *= np.sqrt(weight)[:, None]
            y *= np.sqrt(weight)[:, None]
        return FoldedRidge(self._groups, _Rows(x, y, row_group))

    def _sum(self, number: int, features: Array, target: Array, weight: Matrix | None) -> None:
        """Add rows of a group to the moments of its fold."""
        if self._open is None or self._open.number != number:
            self._close()
            moments = self._moments_of(self._groups[number], features.shape[1])
            self._open = _Open(number, moments, np.zeros(features.shape[1]), np.zeros(target.shape[1]))
        group = self._open
        x, y = features.astype(np.float64), np.nan_to_num(target.astype(np.float64))
        heavy_x, heavy_y = (x, y) if weight is None else (weight[:, None] * x, weight[:, None] * y)
        group.moments.gram += heavy_x.T @ x
        group.moments.moment += heavy_x.T @ y
        group.weight += float(len(x)) if weight is None else float(weight.sum())
        group.total_x += heavy_x.sum(axis=0)
        group.total_y += heavy_y.sum(axis=0)

    def _close(self) -> None:
        """Centre the sums of the open group."""
        if self._open is None:
            return
        group, self._open = self._open, None
        if self._groups[group.number].centred:
            return
        if self._centre:
            group.moments.gram -= np.outer(group.total_x, group.total_x / (group.weight or 1.0))
        group.moments.moment -= np.outer(group.total_x, group.total_y / (group.weight or 1.0))

    def _moments_of(self, group: _Group, width: int) -> _Moments:
        for moments in self._moments:
            if moments.group.fold == group.fold and (moments.group.present == group.present).all():
                return moments
        found = _Moments(group, np.zeros((width, width)), np.zeros((width, len(group.present))))
        self._moments.append(found)
        return found


class _Rows:
    """All rows, centred: features (n, p), targets (n, r), and the number of the group of each."""

    def __init__(self, x: Matrix, y: Matrix, group: NDArray[np.int64]) -> None:
        self.x, self.y, self.group = x, y, group
        self.gram: Matrix = x @ x.T

    def rescale(self, scale: Matrix) -> None:
        self.x *= scale
        self.gram = self.x @ self.x.T


class FoldedRidge:
    """Ridge at any strength and without any of the folds; made by a `RidgeBuilder`.

    Where all rows are stored, submatrices of their Gram matrix are solved, otherwise sums of moments. Both
    give the same weights.
    """

    def __init__(self, groups: list[_Group], data: _Rows | list[_Moments]) -> None:
        self._data = data
        self._width = data.x.shape[1] if isinstance(data, _Rows) else len(data[0].gram)
        self._fold = np.array([group.fold for group in groups])
        present = np.array([group.present for group in groups])
        # Targets that the same groups have are solved together: mostly, that is all of them.
        self._patterns, self._pattern_of = np.unique(present, axis=1, return_inverse=True)

    def rescale(self, factor: Array) -> None:
        """Multiply each of the p features by its factor, as if the rows had come so."""
        scale = factor.astype(np.float64)
        if isinstance(self._data, _Rows):
            self._data.rescale(scale)
            return
        for part in self._data:
            part.gram *= scale[:, None] * scale
            part.moment *= scale[:, None]

    def weight(self, alpha: float | Matrix, without: Collection[int] = ()) -> Array:
        """(p, r) float32 coefficients, fitted on all folds except those in `without`.

        Parameters
        ----------
        alpha
            Strength of the penalty, or (r,) the strength for each target; infinite: coefficients of 0.
        """
        fitted = ~np.isin(self._fold, list(without))
        strength = np.broadcast_to(alpha, len(self._pattern_of))
        weight = np.zeros((self._width, len(self._pattern_of)), np.float32)
        for number, pattern in enumerate(self._patterns.T):
            parts = np.flatnonzero(fitted & pattern)
            own = self._pattern_of == number
            for value in np.unique(strength[own & np.isfinite(strength)]) if len(parts) else ():
                targets = np.flatnonzero(own & (strength == value))
                weight[:, targets] = self._solve(float(value), parts, targets)
        return weight

    def _solve(self, alpha: float, parts: NDArray[np.int64], targets: NDArray[np.int64]) -> Matrix:
        data = self._data
        if isinstance(data, _Rows):
            rows = np.flatnonzero(np.isin(data.group, parts))
            solved = _solve_positive(data.gram[np.ix_(rows, rows)], alpha, data.y[np.ix_(rows, targets)])
            weight: Matrix = data.x[rows].T @ solved
            return weight
        first, *others = (data[number] for number in parts)
        gram, moment = first.gram.copy(), first.moment[:, targets]
        for part in others:
            gram += part.gram
            moment += part.moment[:, targets]
        return _solve_positive(gram, alpha, moment)


def _solve_positive(gram: Matrix, alpha: float, right: Matrix) -> Matrix:
    """(gram + alpha)^-1 right; `gram` is overwritten."""
    gram.flat[:: len(gram) + 1] += alpha
    solved: Matrix = cho_solve(cho_factor(gram, overwrite_a=True, check_finite=False), right)
    return solved
