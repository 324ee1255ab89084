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
from mmap_st.head.mmap.training import SlideTensors

Array = NDArray[np.float32]
Rows = NDArray[np.int64]


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
    """

    slide: HeadSlide
    coordinates: Coordinates
    rows: Rows
    fold: Rows
    blocks: Array
    tensors: SlideTensors

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
    """

    def __init__(self, components: Components, basis: Basis, device: str, limits: Limits) -> None:
        self._components, self._basis, self._device = components, basis, device
        self._block = limits.block

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
        for slide, fold, chosen in zip(slides, folds, subsample_rows(slides, limit), strict=True):
            features = slide_features(slide, self._components)
            coordinates = self._basis.coordinates(slide.targets)
            stored: list[tuple[Rows, Array]] = []
            for number in np.unique(fold[slide.usable]):
                builder.start_group(int(number), coordinates.present)
                for rows in _cut(np.flatnonzero(slide.usable & (fold == number)), self._block):
                    blocks = features.blocks(rows)
                    builder.add(blocks.reshape(len(rows), -1), coordinates.rows(rows))
                    squares = squares + (blocks.astype(np.float64) ** 2).sum(axis=(0, 2))
                    count += len(rows)
                    keep = np.isin(rows, chosen, assume_unique=True)
                    stored.append((rows[keep], blocks[keep]))
            prepared.append(self._prepared(slide, features, coordinates, fold, stored))
        ridge, scale = builder.build(), block_scales(squares, count)
        ridge.rescale(np.repeat(scale, prepared[0].blocks.shape[2]))
        return TrainingData(prepared, ridge, scale)

    def validation(self, slides: Sequence[HeadSlide], limit: int) -> list[PreparedSlide]:
        """Prepare slides that validate; about `limit` of their spots are stored."""
        prepared = []
        for slide, chosen in zip(slides, subsample_rows(slides, limit), strict=True):
            features = slide_features(slide, self._components)
            coordinates = self._basis.coordinates(slide.targets)
            stored = [(rows, features.blocks(rows)) for rows in _cut(chosen, self._block)]
            prepared.append(self._prepared(slide, features, coordinates, np.full(len(slide), -1), stored))
        return prepared

    def _prepared(
        self,
        slide: HeadSlide,
        features: SlideFeatures,
        coordinates: Coordinates,
        fold: Rows,
        stored: Sequence[tuple[Rows, Array]],
    ) -> PreparedSlide:
        rows = np.concatenate([rows for rows, _ in stored])
        blocks = np.concatenate([blocks for _, blocks in stored])
        if (np.diff(rows) < 0).any():  # one slide in several folds
            order = np.argsort(rows)
            rows, blocks = rows[order], blocks[order]
        tensors = SlideTensors.of(features, rows, blocks, self._device)
        return PreparedSlide(slide, coordinates, rows, fold[rows], blocks, tensors)


def _cut(rows: Rows, size: int) -> list[Rows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
