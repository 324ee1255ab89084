"""Out of domain: how far spots and slides lie from the tissue that a head was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import spatial_blocks
from mmap_st.extract.store import BLOCK_BYTES, row_blocks
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import HeldOut, Tensors, Validation

_PREFIX = "domain."
# Axes of each magnification, and training spots that they are found on, at most.
_AXES = 32
_MOST_SPOTS = 1024
# A slide is as far as the tenth of its spots that are nearest: part of a slide may be anything.
_NEAREST = 0.1
#: How many times as far as held-out training slides a slide lies that is unlike all of them.
UNLIKE = 2.0
# And farther than the farthest of them, by so many times.
_BEYOND = 1.1
# Into which one training slide is cut: what is left without one must still be most of the slide.
_STRIPS = 6
# Slides of more spots need the memory: their blocks are smaller.
_MANY_SPOTS = 1 << 18
_PERCENTILES = np.linspace(0.0, 100.0, 101)

Array = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Tissue:
    """Where the embeddings of some spots lie: principal axes, and how far they scatter along and beside them.

    Attributes
    ----------
    mean
        (M, d) float32.
    axes
        (M, k, d) float32, orthonormal; rows of 0 where there are fewer.
    spread
        (M, k) float32, standard deviations along the axes; 0 where there are fewer.
    beside
        (M,) float32, root of the mean squared distance from the space of the axes.
    """

    mean: Array
    axes: Array
    spread: Array
    beside: Array

    def distance(self, embedding: Array) -> Array:
        """(n,) distances of embeddings (n, M, d): 1 for a typical spot of the tissue itself.

        It is squared, and a mean over magnifications: half of it the Mahalanobis distance along the axes, per
        axis, and half the squared distance from their space over that of the tissue (the two parts of a
        probabilistic principal component model, Tipping and Bishop 1999, doi 10.1111/1467-9868.00196).
        """
        total = np.zeros(len(embedding))
        for m, (mean, axes, spread) in enumerate(zip(self.mean, self.axes, self.spread, strict=True)):
            apart = embedding[:, m].astype(np.float64) - mean
            along = apart @ axes.T.astype(np.float64)
            used = spread > 0
            square = (along[:, used] / spread[used]) ** 2
            beside = (apart**2).sum(axis=1) - (along**2).sum(axis=1)
            if used.any():
                total += square.mean(axis=1) / 2
            if self.beside[m] > 0:
                total += np.maximum(beside, 0.0) / float(self.beside[m]) ** 2 / 2
        return (total / len(self.mean)).astype(np.float32)


def fit_tissue(embedding: Array) -> Tissue:
    """Find where embeddings (n, M, d) of training spots lie."""
    n, scales, width = embedding.shape
    mean = embedding.mean(axis=0, dtype=np.float64)
    axes, spread = np.zeros((scales, _AXES, width)), np.zeros((scales, _AXES))
    beside = np.zeros(scales)
    for m in range(scales):
        apart = embedding[:, m].astype(np.float64) - mean[m]
        small = min(n, width)
        gram = apart @ apart.T if n <= width else apart.T @ apart
        values, vectors = np.linalg.eigh(gram)
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        # The rest must be a rest: a few spots lie in the space of their own axes.
        kept = int(min(_AXES, small // 4, (values > 1e-9 * max(values[0], 1e-30)).sum()))
        found = vectors[:, :kept].T if n > width else (vectors[:, :kept] / np.sqrt(values[:kept])).T @ apart
        axes[m, :kept] = found
        spread[m, :kept] = np.sqrt(values[:kept] / n)
        beside[m] = np.sqrt(values[kept:].sum() / n)
    return Tissue(*(part.astype(np.float32) for part in (mean, axes, spread, beside)))


@dataclass(frozen=True)
class Domain:
    """The tissue that a head was trained on, and how far from it slides lay that were held out.

    Attributes
    ----------
    tissue
        Of all training slides.
    slides
        (S,) float32 distances of training slides from the others.
    spots
        (101,) float32, percentiles 0 to 100 of the distances of their spots.
    """

    tissue: Tissue
    slides: Array
    spots: Array

    def fits(self, magnifications: int, width: int) -> bool:
        """Whether it is of embeddings (n, M, d) of these numbers: what was read from a file may not be."""
        tissue, axes = self.tissue, (magnifications, _AXES)
        return (
            tissue.mean.shape == (magnifications, width)
            and tissue.axes.shape == (*axes, width)
            and tissue.spread.shape == axes
            and tissue.beside.shape == (magnifications,)
            and self.slides.ndim == 1
            and len(self.slides) > 0
            and self.typical > 0
            and self.spots.shape == _PERCENTILES.shape
        )

    @property
    def typical(self) -> float:
        """Distance of a held-out training slide: the median."""
        return float(np.median(self.slides))

    def judge(self, slide: HeadSlide) -> Strangeness:
        """How far a slide and its spots lie from the training tissue."""
        distance = distances(self.tissue, slide)
        nearest = slide_distance(distance)
        percentile = np.interp(distance, self.spots, _PERCENTILES).astype(np.float32)
        farther = float((self.slides < nearest).mean() * 100)
        return Strangeness(
            spots=(distance / self.typical).astype(np.float32),
            spot_percentile=percentile,
            slide=nearest / self.typical,
            slide_percentile=farther if np.isfinite(nearest) else float("nan"),
            limit=max(UNLIKE, _BEYOND * float(self.slides.max()) / self.typical),
        )

    def tensors(self) -> Tensors:
        """By name, to be saved with a head's weights."""
        parts = {**vars(self.tissue), "slides": self.slides, "spots": self.spots}
        return {_PREFIX + key: value for key, value in parts.items()}


@dataclass(frozen=True)
class Strangeness:
    """How far a slide lies from the training tissue, 1 being where held-out training slides lie.

    Attributes
    ----------
    spots, spot_percentile
        (n,) float32 distance of each spot, and its percentile among the spots of held-out training slides;
        NaN where the spot is not valid.
    slide, slide_percentile
        Distance of the slide, and its percentile among held-out training slides.
    limit
        The distance from which on a slide is unlike all that the head was trained on.
    """

    spots: Array
    spot_percentile: Array
    slide: float
    slide_percentile: float
    limit: float

    @property
    def unlike(self) -> bool:
        """Whether the slide is unlike all that the head was trained on."""
        return self.slide > self.limit

    @property
    def far(self) -> bool:
        """Whether it is farther than any held-out training slide."""
        return self.slide_percentile >= 100


def strangest(found: Sequence[Strangeness]) -> Strangeness:
    """Of what several encoders say of one slide: the farthest for each spot, and that of the slide.

    Distances of different encoders compare, since each is in units of its own held-out training slides.
    """
    worst = max(found, key=lambda one: (one.unlike, one.far, one.slide / one.limit))
    return replace(
        worst,
        spots=np.fmax.reduce([one.spots for one in found]),
        spot_percentile=np.fmax.reduce([one.spot_percentile for one in found]),
    )


def is_domain(name: str) -> bool:
    """Whether a saved tensor is of `Domain`, not of the head itself."""
    return name.startswith(_PREFIX)


def saved_domain(tensors: Tensors) -> Domain | None:
    """What was saved with a head; None where there is none."""
    found = {key.removeprefix(_PREFIX): value for key, value in tensors.items() if is_domain(key)}
    if not found:
        return None
    slides, spots = found.pop("slides"), found.pop("spots")
    return Domain(Tissue(**found), slides, spots)


def distances(tissue: Tissue, slide: HeadSlide) -> Array:
    """(n,) float32 distances of a slide's spots; NaN where a spot is not valid."""
    found = np.full(len(slide), np.nan, np.float32)
    block_bytes = BLOCK_BYTES if len(slide) <= _MANY_SPOTS else BLOCK_BYTES // 8
    for _, rows in row_blocks(slide.embedding, np.flatnonzero(slide.valid), block_bytes):
        found[rows] = tissue.distance(slide.embedding[rows])
    return found


def slide_distance(spots: Array) -> float:
    """Distance of a slide whose spots have these (n,) distances: of the tenth that is nearest."""
    known = spots[np.isfinite(spots)]
    return float(np.quantile(known, _NEAREST)) if len(known) else float("nan")


def domain_folds(train: Sequence[HeadSlide], validation: Validation) -> list[Rows]:
    """(n,) fold of every spot of each training slide, to hold folds against each other.

    They are those of the choices within training, but for one slide: it is cut into more strips.
    """
    if len(train) == 1:
        return [spatial_blocks(train[0].xy, _STRIPS)]
    return validation.row_folds(train)


@dataclass(frozen=True)
class FittedDomain:
    """The training tissue, whole and without each fold.

    Attributes
    ----------
    domain
        Of the whole.
    train, folds
        The slides, and the (n,) fold of every spot of each.
    without
        Tissue of the other folds, by fold.
    """

    domain: Domain
    train: Sequence[HeadSlide]
    folds: Sequence[Rows]
    without: Mapping[int, Tissue]

    def held_out_distance(self, part: HeldOut) -> Array:
        """(k,) float32 distance of spots from tissue that they are not of, 1 being typical."""
        places = [number for number, slide in enumerate(self.train) if slide.name == part.slide.name]
        found = np.full(len(part.rows), np.nan, np.float32)
        if not places:  # it is a slide to validate on
            found = self.domain.tissue.distance(part.slide.embedding[part.rows])
            return (found / self.domain.typical).astype(np.float32)
        slide, folds = self.train[places[0]], self.folds[places[0]]
        rows = part.rows
        if len(part.slide) < len(slide):  # it is a part of it
            row_of = {spot: row for row, spot in enumerate(slide.ids)}
            rows = np.array([row_of[part.slide.ids[row]] for row in part.rows], np.int64)
        for fold, tissue in self.without.items():
            chosen = np.flatnonzero(folds[rows] == fold)
            for _, block in row_blocks(slide.embedding, chosen):
                found[block] = tissue.distance(slide.embedding[rows[block]])
        return (found / self.domain.typical).astype(np.float32)


def fit_domain(train: Sequence[HeadSlide], folds: Sequence[Rows]) -> FittedDomain | None:
    """Find the training tissue, and how far each of its slides lies from the others.

    Parameters
    ----------
    train
        The training slides; some 1,024 of their spots are used for axes.
    folds
        (n,) fold of every spot of each: what is in one is held against the others.

    Returns
    -------
    None where there are no two folds with valid spots.
    """
    parts = [
        (int(fold), slide, np.flatnonzero(slide.valid & (of_slide == fold)))
        for slide, of_slide in zip(train, folds, strict=True)
        for fold in np.unique(of_slide)
    ]
    parts = [part for part in parts if len(part[2])]
    step = -(-sum(len(rows) for _, _, rows in parts) // _MOST_SPOTS)
    sampled = [(fold, slide.embedding[rows[::step]]) for fold, slide, rows in parts]
    without, left_out = {}, []
    for fold in sorted({fold for fold, _ in sampled}):
        others = [embedding for other, embedding in sampled if other != fold]
        if others:
            without[fold] = fit_tissue(np.concatenate(others))
            left_out += [without[fold].distance(embedding) for other, embedding in sampled if other == fold]
    slides = np.array([slide_distance(spots) for spots in left_out], np.float32)
    # Spots that are all the same, or too few to tell, are near nothing and far from nothing.
    if not len(slides) or not np.median(slides) > 0:
        return None
    spots = np.percentile(np.concatenate(left_out), _PERCENTILES).astype(np.float32)
    whole = fit_tissue(np.concatenate([embedding for _, embedding in sampled]))
    return FittedDomain(Domain(whole, slides, spots), train, folds, without)
