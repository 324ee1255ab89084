"""What heads fit and see in fewer numbers: axes that genes share, and principal components of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from mmap_st.data import ALL, Index, Targets, pooled_moments
from mmap_st.head.inputs import HeadSlide, evenly
from mmap_st.head.interface import Tensors

#: Panels of more genes are fitted by `AUTO_RANK` axes, unless a rank is given.
MOST_GENES = 1_000
AUTO_RANK = 256
# Axes are those of a sample: they hardly change with more spots.
_MOST_SPOTS = 50_000
_ITERATIONS, _OVERSAMPLE = 4, 16
# Keeps least squares solvable on a slide that has fewer genes than there are axes.
_DAMPING = 1e-3

Array = NDArray[np.float32]
Dense = NDArray[np.float64]


@dataclass(frozen=True)
class Basis:
    """Axes of expression, shared by all slides.

    Attributes
    ----------
    axes
        (G, r) float32, orthonormal columns; None: each gene is an axis of its own.
    genes
        Length G of the panel.
    """

    axes: Array | None
    genes: int

    @property
    def rank(self) -> int:
        """Number of axes r."""
        return self.genes if self.axes is None else self.axes.shape[1]

    def expression(self, coordinates: Array, columns: Index = ALL) -> Array:
        """(n, g) differences of expression that coordinates (n, r) stand for."""
        if self.axes is None:
            return coordinates[:, columns]
        expression: Array = coordinates @ self.axes[columns].T
        return expression

    def tensors(self) -> Tensors:
        """What is to be saved of it."""
        return {} if self.axes is None else {"basis": self.axes}

    @classmethod
    def load(cls, tensors: Tensors, genes: int) -> Basis:
        """The basis among the saved tensors of a head."""
        return cls(tensors.get("basis"), genes)

    def coordinates(self, targets: Targets) -> Coordinates:
        """A slide's targets on these axes."""
        if self.axes is None or targets.present.all():
            return Coordinates(self, targets, None)
        here = self.axes[targets.present].astype(np.float64)
        gram = here.T @ here
        gram.flat[:: len(gram) + 1] += _DAMPING
        return Coordinates(self, targets, cho_solve(cho_factor(gram), np.eye(len(gram))).astype(np.float32))


@dataclass(frozen=True)
class Coordinates:
    """One slide's targets on the axes of a basis.

    Attributes
    ----------
    basis, targets
        Of what.
    inverse
        (r, r) float32, makes least squares of projections where the slide lacks genes; None: it lacks none.
    """

    basis: Basis
    targets: Targets
    inverse: Array | None

    @property
    def present(self) -> NDArray[np.bool_]:
        """(r,) coordinates that the slide tells: those of genes that it has; all, where axes are shared."""
        if self.basis.axes is None:
            return self.targets.present
        return np.full(self.basis.rank, self.targets.present.any())

    def rows(self, rows: NDArray[np.int64]) -> Array:
        """(k, r) float32 of some spots, NaN where undefined. They stand for expression up to a constant."""
        if self.basis.axes is None:
            return self.targets.dense(rows)
        coordinates = self._solved(self.targets.values[rows] @ self.basis.axes)
        coordinates[~self.targets.measured[rows]] = np.nan
        return coordinates

    def of(self, expression: Array) -> Array:
        """(r,) coordinates of one expression (G,), found as those of `rows` are: by the slide's genes."""
        if self.basis.axes is None:
            return expression
        return self._solved(np.where(self.targets.present, expression, np.float32(0)) @ self.basis.axes)

    def _solved(self, projected: Array) -> Array:
        return projected if self.inverse is None else projected @ self.inverse


def fit_basis(train: Sequence[HeadSlide], rank: int | None) -> Basis:
    """Axes of greatest variance of the training targets, centred within each slide as fits are.

    Parameters
    ----------
    train
        Training slides.
    rank
        Number of axes; None: all genes of a panel of up to `MOST_GENES`, `AUTO_RANK` of a bigger one.
    """
    genes = train[0].targets.genes
    if rank is None and genes <= MOST_GENES:
        return Basis(None, genes)
    parts = [slide.targets.rows(rows) for slide, rows in zip(train, evenly(train, _MOST_SPOTS), strict=True)]
    axes = _principal_axes(parts, min(rank or AUTO_RANK, genes))
    return Basis(np.ascontiguousarray(axes, np.float32), genes)


def judged_genes(train: Sequence[HeadSlide]) -> Index:
    """Genes that choices are judged by: all, or the `MOST_GENES` of greatest training variance, in order."""
    if train[0].targets.genes <= MOST_GENES:
        return ALL
    _, variance = pooled_moments([slide.targets.rows(slide.usable) for slide in train])
    return np.sort(np.argsort(-variance, kind="stable")[:MOST_GENES])


def _principal_axes(parts: Sequence[Targets], rank: int) -> Dense:
    """(G, rank) orthonormal axes by subspace iteration (Halko, Martinsson, Tropp 2011), on sparse targets."""
    values = [part.values.astype(np.float64) for part in parts]
    means = [part.total(part.defined) / max(1, int(part.defined.sum())) for part in parts]

    def covariance_times(axes: Dense) -> Dense:
        product = np.zeros_like(axes)
        for own, mean in zip(values, means, strict=True):
            product += own.T @ (own @ axes) - own.shape[0] * np.outer(mean, mean @ axes)
        return product

    genes = parts[0].genes
    width = min(genes, rank + _OVERSAMPLE)
    axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(genes, width)))
    for _ in range(_ITERATIONS):
        axes, _ = np.linalg.qr(covariance_times(axes))
    _, vectors = np.linalg.eigh(axes.T @ covariance_times(axes))
    principal: Dense = axes @ vectors[:, ::-1][:, :rank]
    return principal


# Axes are those of a sample: they hardly change with more spots.
_MOST_SPOTS_OF_COMPONENTS = 20_000
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
    step = max(1, -(-total // _MOST_SPOTS_OF_COMPONENTS))
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
