"""One pass over the slides of a fit: sums for ridge over all spots, and a bounded number of stored spots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmap_st.head.basis import Basis, Components, Coordinates
from mmap_st.head.inputs import HeadSlide, subsample_rows
from mmap_st.head.interface import Limits
from mmap_st.head.linear import FoldedRidge, RidgeBuilder
from mmap_st.head.mmap.features import SlideFeatures, block_scales, slide_features
from mmap_st.head.mmap.strengths import row_weights
from mmap_st.head.mmap.training import SlideTensors

Array = NDArray[np.float32]
Rows = NDArray[np.int64]
Dense = NDArray[np.float64]


@dataclass(frozen=True)
class PreparedSlide:
    """One slide with what is computed once for the spots that are stored.

    Attributes
    ----------
    slide, coordinates
        The slide, and its targets as they are fitted.
    rows
        (k,) int64 ascending, the stored spots: all usable ones, or evenly spaced ones.
    fold
        (k,) int64 fold of each; -1 for slides that validate.
    blocks
        (k, B, M * c) float32, input of ridge before its scaling.
    tensors
        Input of the network.
    weight
        (k,) float64 weight of each in ridge; None: 1.
    """

    slide: HeadSlide
    coordinates: Coordinates
    rows: Rows
    fold: Rows
    blocks: Array
    tensors: SlideTensors
    weight: Dense | None

    def scaled(self, positions: Rows, scale: Array) -> Array:
        """(k, B * M * c) float32 input of ridge for some of the stored spots."""
        return (self.blocks[positions] * scale[:, None]).reshape(len(positions), -1)


@dataclass(frozen=True)
class TrainingData:
    """What a fit is made of.

    Attributes
    ----------
    slides
        The training slides, with about as many spots as the limit allows.
    ridge
        Ridge on all their usable spots, its features scaled.
    scale
        (B,) float32 factors of the groups of features, see `block_scales`.
    """

    slides: list[PreparedSlide]
    ridge: FoldedRidge
    scale: Array


class Preparation:
    """Prepares slides one after another: the features of one slide at a time are in memory.

    Parameters
    ----------
    components, basis
        Of the embeddings and of expression.
    device
        Where the network is trained.
    limits
        How many spots are computed at once.
    library_power
        Spots weigh by their library size to this power.
    centre
        Whether a slide that is cut into folds is centred as a whole; else each part of it is.
    """

    def __init__(
        self,
        components: Components,
        basis: Basis,
        device: str,
        limits: Limits,
        library_power: float = 0.0,
        *,
        centre: bool = False,
    ) -> None:
        self._components, self._basis, self._device = components, basis, device
        self._block, self._power, self._centre = limits.block, library_power, centre

    def training(self, slides: Sequence[HeadSlide], folds: Sequence[Rows], limit: int) -> TrainingData:
        """Prepare training slides; about `limit` spots are stored, and ridge is on all usable spots.

        Parameters
        ----------
        slides
            With targets.
        folds
            (n,) fold of every spot of each slide.
        limit
            Largest number of spots to store; evenly spaced ones where there are more.
        """
        prepared: list[PreparedSlide] = []
        builder = RidgeBuilder()
        squares, count = np.zeros(()), 0
        weights = _row_weights(slides, self._power)
        chosen_rows = subsample_rows(slides, limit)
        for slide, fold, chosen, weight in zip(slides, folds, chosen_rows, weights, strict=True):
            features = slide_features(slide, self._components)
            coordinates = self._basis.coordinates(slide.targets)
            stored: list[tuple[Rows, Array]] = []
            numbers = np.unique(fold[slide.usable])
            # How parts of one slide differ is to be learned: only the whole of it is centred.
            means = (
                self._means(slide, features, coordinates, weight)
                if self._centre and len(numbers) > 1
                else None
            )
            for number in numbers:
                builder.start_group(int(number), coordinates.present, centred=means is not None)
                for rows in _cut(np.flatnonzero(slide.usable & (fold == number)), self._block):
                    blocks, target = features.blocks(rows), coordinates.rows(rows)
                    flat = blocks.reshape(len(rows), -1)
                    if means is not None:
                        flat, target = flat - means[0], target - means[1]
                    builder.add(flat, target, None if weight is None else weight[rows])
                    squares = squares + (blocks.astype(np.float64) ** 2).sum(axis=(0, 2))
                    count += len(rows)
                    keep = np.isin(rows, chosen, assume_unique=True)
                    stored.append((rows[keep], blocks[keep]))
            prepared.append(self._prepared(slide, features, coordinates, fold, stored, weight))
        ridge, scale = builder.build(), block_scales(squares, count)
        ridge.rescale(np.repeat(scale, prepared[0].blocks.shape[2]))
        return TrainingData(prepared, ridge, scale)

    def _means(
        self, slide: HeadSlide, features: SlideFeatures, coordinates: Coordinates, weight: Dense | None
    ) -> tuple[Array, Array]:
        """(B * M * c,) and (r,) float32 weighted means of features and of targets over usable spots."""
        total_x, total_y, total = np.zeros(()), np.zeros(()), 0.0
        for rows in _cut(np.flatnonzero(slide.usable), self._block):
            own = np.ones(len(rows)) if weight is None else weight[rows]
            total_x = total_x + own @ features.blocks(rows).reshape(len(rows), -1).astype(np.float64)
            total_y = total_y + own @ coordinates.rows(rows).astype(np.float64)
            total += float(own.sum())
        return (total_x / total).astype(np.float32), (total_y / total).astype(np.float32)

    def validation(self, slides: Sequence[HeadSlide], limit: int) -> list[PreparedSlide]:
        """Prepare slides that validate; about `limit` of their spots are stored."""
        prepared = []
        weights = _row_weights(slides, self._power)
        for slide, chosen, weight in zip(slides, subsample_rows(slides, limit), weights, strict=True):
            features = slide_features(slide, self._components)
            coordinates = self._basis.coordinates(slide.targets)
            stored = [(rows, features.blocks(rows)) for rows in _cut(chosen, self._block)]
            fold = np.full(len(slide), -1)
            prepared.append(self._prepared(slide, features, coordinates, fold, stored, weight))
        return prepared

    def _prepared(
        self,
        slide: HeadSlide,
        features: SlideFeatures,
        coordinates: Coordinates,
        fold: Rows,
        stored: Sequence[tuple[Rows, Array]],
        weight: Dense | None,
    ) -> PreparedSlide:
        rows = np.concatenate([rows for rows, _ in stored])
        blocks = np.concatenate([blocks for _, blocks in stored])
        if (np.diff(rows) < 0).any():  # one slide in several folds
            order = np.argsort(rows)
            rows, blocks = rows[order], blocks[order]
        tensors = SlideTensors.of(features, rows, blocks, self._device)
        own = None if weight is None else weight[rows]
        return PreparedSlide(slide, coordinates, rows, fold[rows], blocks, tensors, own)


def _row_weights(slides: Sequence[HeadSlide], power: float) -> list[Dense | None]:
    """(n,) weight of every spot of each slide, with mean 1 over the usable spots of all."""
    libraries = [None if s.library is None else np.where(s.usable, s.library, np.nan) for s in slides]
    return row_weights(libraries, power)


def _cut(rows: Rows, size: int) -> list[Rows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
