"""One pass over the slides of a fit: what ridge needs is added up, and a bounded number of spots is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmap_st.head.basis import Basis, Components, Coordinates
from mmap_st.head.inputs import HeadSlide, subsample_rows
from mmap_st.head.interface import Limits
from mmap_st.head.linear import Chunk, FoldedRidge, Group
from mmap_st.head.mmap.features import SlideFeatures, slide_features
from mmap_st.head.mmap.trained_head import block_scales
from mmap_st.head.mmap.training import SlideTensors

Array = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class PreparedSlide:
    """One slide with what is computed once of the spots that are kept.

    Attributes
    ----------
    slide, coordinates
        The slide, and its targets as they are fitted.
    rows
        (k,) ascending, the spots that are kept: all usable ones, or some taken evenly.
    fold
        (k,) fold of each; -1 for slides that validate.
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
        """(k, B * M * c) input of ridge for some of the kept spots."""
        return (self.blocks[positions] * scale[:, None]).reshape(len(positions), -1)


class Preparation:
    """Prepares slides one after another; no more than one of them is in memory.

    Parameters
    ----------
    components, basis
        What the head sees of embeddings, and fits of expression.
    device
        Where the network is trained.
    limits
        How many spots are computed at once.
    """

    def __init__(self, components: Components, basis: Basis, device: str, limits: Limits) -> None:
        self._components, self._basis, self._device = components, basis, device
        self._block = limits.block
        self._squares, self._count = np.zeros(()), 0

    def train(
        self, slides: Sequence[HeadSlide], folds: Sequence[Rows], limit: int
    ) -> tuple[list[PreparedSlide], FoldedRidge, Array]:
        """Prepare training slides, of which at most about `most` spots are kept.

        Returns
        -------
        The slides, ridge on all their usable spots, and the (B,) scales of its blocks.
        """
        prepared: list[PreparedSlide] = []

        def groups() -> Iterator[Group]:
            for slide, fold, kept in zip(slides, folds, subsample_rows(slides, limit), strict=True):
                features = slide_features(slide, self._components)
                coordinates = self._basis.coordinates(slide.targets)
                parts: list[tuple[Rows, Array]] = []
                for number in np.unique(fold[slide.usable]):
                    rows = np.flatnonzero(slide.usable & (fold == number))
                    chunks = self._chunks(features, coordinates, rows, kept, parts)
                    yield Group(int(number), coordinates.present, chunks)
                prepared.append(self._prepared(slide, features, coordinates, fold, parts))

        ridge = FoldedRidge(groups())
        scale = block_scales(self._squares, self._count)
        ridge.rescale(np.repeat(scale, prepared[0].blocks.shape[2]))
        return prepared, ridge, scale

    def validation(self, slides: Sequence[HeadSlide], limit: int) -> list[PreparedSlide]:
        """Prepare slides that validate, of which at most about `most` spots are kept."""
        prepared = []
        for slide, kept in zip(slides, subsample_rows(slides, limit), strict=True):
            features = slide_features(slide, self._components)
            coordinates = self._basis.coordinates(slide.targets)
            parts = [(part, features.blocks(part)) for part in _cut(kept, self._block)]
            prepared.append(self._prepared(slide, features, coordinates, np.full(len(slide), -1), parts))
        return prepared

    def _chunks(
        self,
        features: SlideFeatures,
        coordinates: Coordinates,
        rows: Rows,
        kept: Rows,
        parts: list[tuple[Rows, Array]],
    ) -> Iterator[Chunk]:
        """Features and targets of `rows` in parts; adds up squared lengths, and notes what is kept."""
        for part in _cut(rows, self._block):
            blocks = features.blocks(part)
            self._squares = self._squares + (blocks.astype(np.float64) ** 2).sum(axis=(0, 2))
            self._count += len(part)
            keep = np.isin(part, kept, assume_unique=True)
            parts.append((part[keep], blocks[keep]))
            yield blocks.reshape(len(part), -1), coordinates.rows(part)

    def _prepared(
        self,
        slide: HeadSlide,
        features: SlideFeatures,
        coordinates: Coordinates,
        fold: Rows,
        parts: Sequence[tuple[Rows, Array]],
    ) -> PreparedSlide:
        rows = np.concatenate([part for part, _ in parts])
        blocks = np.concatenate([values for _, values in parts])
        if (np.diff(rows) < 0).any():  # one slide in several folds
            order = np.argsort(rows)
            rows, blocks = rows[order], blocks[order]
        tensors = SlideTensors.of(features, rows, blocks, self._device)
        return PreparedSlide(slide, coordinates, rows, fold[rows], blocks, tensors)


def _cut(rows: Rows, size: int) -> list[Rows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
