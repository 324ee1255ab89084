"""Principal components of standardised embeddings: what a head sees of an embedding, in fewer numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmap_st.head.slides import HeadSlide

# Axes are those of a sample: they hardly change with more spots.
_MOST_SPOTS = 20_000
# Coordinates are divided by their spread to this power: axes of small spread, which ridge would hardly use,
# count for more (docs/recipe.md). 0 would leave distances as they are, 1 would make all axes alike.
_WHITENING = 0.25
_LEAST_SPREAD = 1e-3  # of the greatest


@dataclass(frozen=True)
class Components:
    """Axes of greatest variance of the training embeddings, at each magnification.

    Attributes
    ----------
    axes
        (M, d, c) float32, orthogonal columns, greatest variance first. Coordinates have a mean square of 1
        on average over the axes of a magnification.
    """

    axes: NDArray[np.float32]

    def of(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, M, c) coordinates of standardised embeddings (n, M, d)."""
        coordinates: NDArray[np.float32] = np.einsum("nmd,mdc->nmc", embedding, self.axes, optimize=True)
        return coordinates


def fit_components(slides: Sequence[HeadSlide], most: int) -> Components:
    """Find the axes on spots taken evenly from all slides; no expression is looked at.

    Parameters
    ----------
    slides
        Training slides.
    most
        Number of axes a magnification; fewer where there are fewer dimensions or spots.
    """
    total = sum(int(slide.valid.sum()) for slide in slides)
    step = max(1, -(-total // _MOST_SPOTS))
    sample = np.concatenate([slide.standardised(np.flatnonzero(slide.valid)[::step]) for slide in slides])
    count = min(most, *sample.shape[::2])
    return Components(
        np.stack([whitened_axes(sample[:, m].astype(np.float64), count) for m in range(sample.shape[1])])
    )


def whitened_axes(rows: NDArray[np.float64], count: int) -> NDArray[np.float32]:
    """(d, count) partly whitened eigenvectors of the covariance of (n, d) rows."""
    n, d = rows.shape
    if d <= n:
        _, vectors = np.linalg.eigh(rows.T @ rows)
        axes = vectors[:, ::-1][:, :count]
    else:
        _, vectors = np.linalg.eigh(rows @ rows.T)
        # Rows of rank below `count` leave axes of no length; QR makes them orthonormal all the same.
        axes, _ = np.linalg.qr(rows.T @ vectors[:, ::-1][:, :count])
    # An axis and its negative are the same: the greatest entry is made positive.
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(count)]
    axes = axes * np.where(largest < 0, -1.0, 1.0)
    spread = np.sqrt(((rows @ axes) ** 2).mean(axis=0))
    if spread.max() == 0:
        return axes.astype(np.float32)
    relative = np.maximum(spread / spread.max(), _LEAST_SPREAD) ** -_WHITENING
    size = np.sqrt(((spread * relative) ** 2).mean())
    return np.ascontiguousarray(axes * (relative / size), dtype=np.float32)
