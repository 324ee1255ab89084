"""Closed-form ridge for any choice of training folds, from sums that are computed once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Matrix = NDArray[np.float64]
Weight = NDArray[np.float32]
Chunk = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Group:
    """Training rows of one slide and one fold.

    Attributes
    ----------
    fold
        Number of the fold that they belong to.
    present
        (r,) bool, targets that the slide has.
    chunks
        Features (k, p) and targets (k, r), float32, of consecutive chunks of the rows; read once. Targets
        that the slide does not have may be NaN.
    """

    fold: int
    present: NDArray[np.bool_]
    chunks: Iterable[Chunk]


@dataclass
class _Moments:
    """Sums (p, p) and (p, r) over the groups of one fold with the same targets, each group centred."""

    fold: int
    present: NDArray[np.bool_]
    gram: Matrix
    moment: Matrix


class FoldedRidge:
    """Ridge at any strength and without any of the folds.

    Targets and features are centred within each group of rows, which removes differences between slides.
    Where there are fewer rows than features, all rows are stored, and submatrices of their Gram matrix are
    solved; otherwise moments are summed by fold and by the targets that are present. Both give the same
    weights.

    Parameters
    ----------
    groups
        Rows of all slides, read once; a target that is missing from a group is fitted on the others.
    centre
        False: the features come centred.
    """

    def __init__(self, groups: Iterable[Group], *, centre: bool = True) -> None:
        self._centre = centre
        seen: list[Group] = []

        def stream() -> Iterator[tuple[int, Chunk]]:
            for group in groups:
                seen.append(group)
                for chunk in group.chunks:
                    yield len(seen) - 1, chunk

        chunks = stream()
        held: list[tuple[int, Chunk]] = []
        for item in chunks:
            held.append(item)
            self._width = item[1][0].shape[1]
            if sum(len(x) for _, (x, _) in held) > self._width:
                break
        else:
            self._hold(seen, held)
            return
        self._x: Matrix | None = None
        self._parts: list[_Moments] = []
        for number, items in groupby(chain(held, chunks), key=lambda item: item[0]):
            self._add(seen[number], (chunk for _, chunk in items))
        self._settle([(part.fold, part.present) for part in self._parts])

    def _hold(self, groups: list[Group], held: list[tuple[int, Chunk]]) -> None:
        """Store all rows."""
        self._row_part = np.concatenate([np.full(len(x), number) for number, (x, _) in held])
        self._x = np.concatenate([x for _, (x, _) in held]).astype(np.float64)
        self._y = np.nan_to_num(np.concatenate([y for _, (_, y) in held]).astype(np.float64))
        for number in np.unique(self._row_part):
            rows = self._row_part == number
            if self._centre:
                self._x[rows] -= self._x[rows].mean(axis=0)
            self._y[rows] -= self._y[rows].mean(axis=0)
        self._gram = self._x @ self._x.T
        self._settle([(group.fold, group.present) for group in groups])

    def _add(self, group: Group, chunks: Iterable[Chunk]) -> None:
        """Add one group to the moments of its fold."""
        same = (p for p in self._parts if p.fold == group.fold and (p.present == group.present).all())
        part = next(same, None)
        if part is None:
            width, number = self._width, len(group.present)
            part = _Moments(group.fold, group.present, np.zeros((width, width)), np.zeros((width, number)))
            self._parts.append(part)
        rows, total_x, total_y = 0, np.zeros(self._width), np.zeros(len(group.present))
        for features, target in chunks:
            x, y = features.astype(np.float64), np.nan_to_num(target.astype(np.float64))
            part.gram += x.T @ x
            part.moment += x.T @ y
            rows += len(x)
            total_x += x.sum(axis=0)
            total_y += y.sum(axis=0)
        if self._centre:
            part.gram -= np.outer(total_x, total_x / max(rows, 1))
        part.moment -= np.outer(total_x, total_y / max(rows, 1))

    def _settle(self, parts: list[tuple[int, NDArray[np.bool_]]]) -> None:
        """Group the targets that are present in the same parts: they are solved together."""
        self._fold = np.array([fold for fold, _ in parts])
        present = np.array([present for _, present in parts])
        self._patterns, self._pattern_of = np.unique(present, axis=1, return_inverse=True)

    def rescale(self, factor: NDArray[np.float32]) -> None:
        """Multiply each of the p features by its factor, as if the rows had come so."""
        scale = factor.astype(np.float64)
        if self._x is not None:
            self._x *= scale
            self._gram = self._x @ self._x.T
            return
        for part in self._parts:
            part.gram *= scale[:, None] * scale
            part.moment *= scale[:, None]

    def weight(self, alpha: float, without: Collection[int] = ()) -> Weight:
        """(p, r) float32 coefficients at strength `alpha`, fitted on all folds except those in `without`."""
        fitted = ~np.isin(self._fold, list(without))
        weight = np.zeros((self._width, len(self._pattern_of)), np.float32)
        for number, pattern in enumerate(self._patterns.T):
            targets = np.flatnonzero(self._pattern_of == number)
            parts = np.flatnonzero(fitted & pattern)
            if len(parts):
                weight[:, targets] = self._solve(alpha, parts, targets)
        return weight

    def _solve(self, alpha: float, parts: NDArray[np.int64], targets: NDArray[np.int64]) -> Matrix:
        if self._x is not None:
            rows = np.flatnonzero(np.isin(self._row_part, parts))
            solved = _solve_positive(self._gram[np.ix_(rows, rows)], alpha, self._y[np.ix_(rows, targets)])
            weight: Matrix = self._x[rows].T @ solved
            return weight
        first, *others = (self._parts[number] for number in parts)
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
