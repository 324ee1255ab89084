"""Fewer dimensions for heads: axes of expression that genes share, and principal components of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from mmap_st.data import ALL, Index, Targets, pooled_moments
from mmap_st.head.inputs import EmbeddingScaler, HeadSlide, subsample_rows
from mmap_st.head.interface import Tensors
from mmap_st.head.normal_scores import NormalScores, fit_normal_scores

#: Larger panels are fitted by `AUTO_RANK` axes, unless a rank is given.
MOST_GENES = 1_000
AUTO_RANK = 256
# The axes are computed on a sample: more spots hardly change them.
_MAX_SPOTS = 50_000
_ITERATIONS, _OVERSAMPLE = 4, 16
_BLOCK = 4_096  # spots that are dense at once
# Keeps least squares solvable on a slide with fewer genes than there are axes.
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
        """(n, g) float32 differences of expression at coordinates (n, r)."""
        if self.axes is None:
            return coordinates[:, columns]
        expression: Array = coordinates @ self.axes[columns].T
        return expression

    def first(self, rank: int) -> Basis:
        """Its first axes only, as many as are given; genes that are axes of their own stay as they are."""
        return self if self.axes is None else Basis(np.ascontiguousarray(self.axes[:, :rank]), self.genes)

    def tensors(self) -> Tensors:
        """Return what is saved of it."""
        return {} if self.axes is None else {"basis": self.axes}

    @classmethod
    def load(cls, tensors: Tensors, genes: int) -> Basis:
        """Load the basis from the saved tensors of a head."""
        return cls(tensors.get("basis"), genes)

    def coordinates(self, targets: Targets) -> Coordinates:
        """Return a slide's targets on these axes."""
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
        The axes and the targets.
    inverse
        (r, r) float32, turns projections into least-squares coordinates where genes are missing; None: the
        slide has all genes.
    """

    basis: Basis
    targets: Targets
    inverse: Array | None

    @property
    def present(self) -> NDArray[np.bool_]:
        """(r,) bool, coordinates that are defined: those of present genes; all, if genes share axes."""
        if self.basis.axes is None:
            return self.targets.present
        return np.full(self.basis.rank, self.targets.present.any())

    def rows(self, rows: NDArray[np.int64]) -> Array:
        """(k, r) float32 coordinates of some spots, NaN where undefined; up to a constant of the slide."""
        if self.basis.axes is None:
            return self.targets.dense(rows)
        coordinates = self._solved(self.targets.values[rows] @ self.basis.axes)
        coordinates[~self.targets.measured[rows]] = np.nan
        return coordinates

    def of(self, expression: Array) -> Array:
        """(r,) coordinates of one expression (G,), computed from the slide's genes as those of `rows` are."""
        if self.basis.axes is None:
            return expression
        return self._solved(np.where(self.targets.present, expression, np.float32(0)) @ self.basis.axes)

    def _solved(self, projected: Array) -> Array:
        return projected if self.inverse is None else projected @ self.inverse


def fit_basis(train: Sequence[HeadSlide], rank: int | None) -> Basis:
    """Compute the axes of greatest variance of the training targets, centred within each slide.

    Parameters
    ----------
    train
        Training slides.
    rank
        Number of axes; None: the genes themselves on panels of up to `MOST_GENES`, otherwise `AUTO_RANK`.
    """
    genes = train[0].targets.genes
    if rank is None and genes <= MOST_GENES:
        return Basis(None, genes)
    parts = [
        slide.targets.rows(rows) for slide, rows in zip(train, subsample_rows(train, _MAX_SPOTS), strict=True)
    ]
    axes = _principal_axes(parts, min(rank or AUTO_RANK, genes))
    return Basis(np.ascontiguousarray(axes, np.float32), genes)


def validation_genes(train: Sequence[HeadSlide]) -> Index:
    """Genes that validation uses: all, or in order the `MOST_GENES` of greatest training variance."""
    if train[0].targets.genes <= MOST_GENES:
        return ALL
    _, variance = pooled_moments([slide.targets.rows(slide.usable) for slide in train])
    return np.sort(np.argsort(-variance, kind="stable")[:MOST_GENES])


def _principal_axes(parts: Sequence[Targets], rank: int) -> Dense:
    """(G, rank) orthonormal axes of greatest variance.

    Of few genes by their covariance; of many, whose targets are sparse, by subspace iteration (Halko,
    Martinsson, Tropp 2011).
    """
    if parts[0].genes <= MOST_GENES:
        _, vectors = np.linalg.eigh(_covariance(parts))
        return np.asarray(vectors[:, ::-1][:, :rank])
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


def _covariance(parts: Sequence[Targets]) -> Dense:
    """(G, G) sums of products of targets that are centred within each slide; undefined ones count as 0."""
    genes = parts[0].genes
    total = np.zeros((genes, genes))
    for part in parts:
        mean = part.total(part.defined) / max(1, int(part.defined.sum()))
        for start in range(0, len(part), _BLOCK):
            values = part.values[start : start + _BLOCK].toarray().astype(np.float64)
            total += values.T @ values
        total -= len(part) * np.outer(mean, mean)
    return total


# The components are computed on a sample: more spots hardly change them.
_MAX_SPOTS_OF_COMPONENTS = 20_000
# Coordinates are divided by their standard deviation to this power, so that axes of small variance, which
# ridge would hardly use, count for more (docs/recipe.md). 0 would change nothing, 1 would whiten fully.
_WHITENING = 0.25
_LEAST_SPREAD = 1e-3  # relative to the largest


@dataclass(frozen=True)
class Components:
    """Axes of greatest variance of the training embeddings, at each magnification.

    Attributes
    ----------
    axes
        (M, d, c) float32, orthogonal columns, greatest variance first. The mean square of the coordinates,
        averaged over the axes of a magnification, is 1.
    ranks
        Whether they are of the normal scores of embeddings within each slide; else of standardised ones.
    """

    axes: NDArray[np.float32]
    ranks: bool = False

    def of(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, M, c) float32 coordinates of embeddings (n, M, d) that are scaled within their slide."""
        coordinates: NDArray[np.float32] = np.einsum("nmd,mdc->nmc", embedding, self.axes, optimize=True)
        return coordinates


def fit_components(slides: Sequence[HeadSlide], limit: int, *, ranks: bool = False) -> Components:
    """Compute the axes on evenly spaced spots of all slides, without looking at expression.

    Parameters
    ----------
    slides
        Training slides.
    limit
        Number of axes of each magnification; fewer where there are fewer dimensions or spots.
    ranks
        Of normal scores, see `mmap_st.head.normal_scores`; else of standardised embeddings.
    """
    total = sum(int(slide.valid.sum()) for slide in slides)
    step = max(1, -(-total // _MAX_SPOTS_OF_COMPONENTS))
    rows = [np.flatnonzero(slide.valid)[::step] for slide in slides]
    sample = np.concatenate(
        [
            slide_scaler(slide, ranks).transform(slide.embedding[r])
            for slide, r in zip(slides, rows, strict=True)
        ]
    )
    count = min(limit, *sample.shape[::2])
    return Components(
        np.stack([whitened_axes(sample[:, m].astype(np.float64), count) for m in range(sample.shape[1])]),
        ranks,
    )


def slide_scaler(slide: HeadSlide, ranks: bool) -> EmbeddingScaler | NormalScores:
    """Return what scales the embeddings of a slide's valid spots by those of all of them."""
    return fit_normal_scores(slide.embedding, slide.valid) if ranks else slide.scaler


def whitened_axes(rows: NDArray[np.float64], count: int) -> NDArray[np.float32]:
    """(d, count) partly whitened eigenvectors of the covariance of (n, d) rows."""
    n, d = rows.shape
    if d <= n:
        _, vectors = np.linalg.eigh(rows.T @ rows)
        axes = vectors[:, ::-1][:, :count]
    else:
        _, vectors = np.linalg.eigh(rows @ rows.T)
        # Where the rank is below `count`, some axes have length 0; QR makes all of them orthonormal.
        axes, _ = np.linalg.qr(rows.T @ vectors[:, ::-1][:, :count])
    # The sign of an axis is arbitrary: its largest entry is made positive.
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(count)]
    axes = axes * np.where(largest < 0, -1.0, 1.0)
    spread = np.sqrt(((rows @ axes) ** 2).mean(axis=0))
    if spread.max() == 0:
        return axes.astype(np.float32)
    relative = np.maximum(spread / spread.max(), _LEAST_SPREAD) ** -_WHITENING
    size = np.sqrt(((spread * relative) ** 2).mean())
    return np.ascontiguousarray(axes * (relative / size), dtype=np.float32)
