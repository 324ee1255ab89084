"""What scores of a slide need of all its spots, summed up block by block in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.head.scoring.metrics import GeneScores, correlation_of_sums

Array = NDArray[np.floating[Any]]


class RunningScores:
    """Scores of one slide, see `mmap_st.head.scoring.metrics.gene_scores`.

    Means and sums of squares are updated pairwise (Chan, Golub and LeVeque 1983), which keeps the precision
    that plain sums of squares lose.

    Parameters
    ----------
    genes
        Length of the panel.
    """

    def __init__(self, genes: int) -> None:
        self._spots = 0
        self._count = np.zeros(genes, np.int64)
        self._mean = np.zeros((2, genes))
        self._spread = np.zeros((2, genes))
        self._size = np.zeros((2, genes))
        self._product, self._squared, self._absolute = np.zeros((3, genes))

    def add(self, predicted: Array, measured: Array) -> None:
        """Add spots: (k, G) of both sides, NaN where undefined."""
        sides = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
        use = np.isfinite(sides[0]) & np.isfinite(sides[1])
        x, y = (np.where(use, side, 0.0) for side in sides)
        error = x - y
        self._spots += int(use.any(axis=1).sum())
        self._squared += (error**2).sum(axis=0)
        self._absolute += np.abs(error).sum(axis=0)
        own = use.sum(axis=0)
        total = self._count + own
        share = own / np.maximum(total, 1)
        apart = []
        for side, values in enumerate((x, y)):
            self._size[side] += (values**2).sum(axis=0)
            mean = values.sum(axis=0) / np.maximum(own, 1)
            values -= mean
            values[~use] = 0.0
            apart.append(mean - self._mean[side])
            self._spread[side] += (values**2).sum(axis=0) + apart[side] ** 2 * self._count * share
            self._mean[side] += apart[side] * share
        self._product += (x * y).sum(axis=0) + apart[0] * apart[1] * self._count * share
        self._count = total

    def scores(self) -> GeneScores:
        """Of all spots that were added."""
        (spread_x, spread_y), (size_x, size_y) = self._spread, self._size
        pcc = correlation_of_sums(self._count, self._product, (spread_x, spread_y), (size_x, size_y))
        return GeneScores(self._spots, self._count, pcc, self._squared, self._absolute)


class RunningCoverage:
    """How often intervals hold the measured values of one slide, see `mmap_st.head.scoring.coverage`."""

    def __init__(self) -> None:
        self._inside = self._count = 0

    def add(self, predicted: Array, measured: Array, reach: Array) -> None:
        """Add spots: (k, G) of both sides, NaN where undefined, and half the widths of their intervals."""
        known = np.isfinite(measured) & np.isfinite(predicted)
        self._inside += int((np.abs(predicted - measured) <= reach)[known].sum())
        self._count += int(known.sum())

    @property
    def share(self) -> float | None:
        """Of all measured values that were added; None without any."""
        return self._inside / self._count if self._count else None


class RunningMoments:
    """Mean, standard deviation and largest size of predictions over the spots that have them.

    Parameters
    ----------
    genes
        Their number g.
    """

    def __init__(self, genes: int) -> None:
        self._count = 0
        self._squares = np.zeros(genes)
        self.mean = np.zeros(genes)
        self.largest = np.zeros(genes)

    def add(self, predicted: Array) -> None:
        """Add spots that all have predictions: (k, g)."""
        if not len(predicted):
            return
        values = np.asarray(predicted, np.float64)
        self.largest = np.maximum(self.largest, np.abs(values).max(axis=0))
        mean = values.mean(axis=0)
        total = self._count + len(values)
        share = len(values) / total
        apart = mean - self.mean
        self._squares += ((values - mean) ** 2).sum(axis=0) + apart**2 * self._count * share
        self.mean = self.mean + apart * share
        self._count = total

    @property
    def spread(self) -> NDArray[np.float64]:
        """(g,) standard deviations."""
        return np.asarray(np.sqrt(self._squares / max(self._count, 1)))
