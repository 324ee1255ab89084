"""Features of the `mmap` head: principal components of spots, of their neighbours and of prototypes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmap_st.extract.store import BLOCK_BYTES, row_blocks
from mmap_st.head.basis import Components, slide_scaler
from mmap_st.head.blocks import spot_blocks
from mmap_st.head.inputs import EmbeddingScaler, HeadSlide
from mmap_st.head.neighbourhood import SpatialNeighbours, spot_pitch
from mmap_st.head.normal_scores import NormalScores

#: Standard deviations of the two averages over neighbours, in spot pitches (docs/recipe.md).
NEAR, WIDE = 0.7, 1.5
#: Weights of the four groups of features: the spot, its near and its wide neighbourhood, prototypes.
SHARES = (1.0, 1.0, 1.0, 2.0)
#: Attention over selected prototypes is the softmax of the cosine divided by this.
TEMPERATURE = 0.3
# Spots whose attention is computed at once.
_ATTENTION_ROWS = 8_192
# Blocks that together need more than so many times the spots of their slide are not worth it.
_MOST_READS = 2


def block_scales(squares: NDArray[np.float64], count: int) -> NDArray[np.float32]:
    """Compute factors that give groups of features mean squared lengths proportional to `SHARES`.

    Parameters
    ----------
    squares
        (B,) sum of the squared lengths of each group over spots.
    count
        Number of spots.

    Returns
    -------
    (B,) float32; the scaled groups together have a mean squared length of 1.
    """
    share = np.array(SHARES[: len(squares)]) / sum(SHARES[: len(squares)])
    mean = squares / max(count, 1)
    return np.sqrt(np.divide(share, mean, out=np.zeros_like(mean), where=mean > 0)).astype(np.float32)


@dataclass(frozen=True)
class SlideFeatures:
    """Principal components of one slide.

    Attributes
    ----------
    own
        (n, M, c) float32 components of its spots; 0 for invalid ones.
    centre
        (K, M, c) float32 components of its prototype candidates; None where they are not used.
    selected
        (n, K) bool, the candidates that each spot attends to.
    neighbours
        The places of its spots.
    """

    own: NDArray[np.float32]
    centre: NDArray[np.float32] | None
    selected: NDArray[np.bool_] | None
    neighbours: SpatialNeighbours

    def blocks(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return the input of ridge for some spots.

        Attended prototypes are averaged over the near neighbourhood too: adjacent spots attend to much the
        same ones. The averages are computed for these `rows` (k,) only, and not stored; None: all spots.

        Returns
        -------
        (k, B, M * c) float32: the spot itself, its near and its wide neighbourhood, and its prototypes.
        """
        rows = np.arange(len(self.own)) if rows is None else rows
        near, wide = (self.neighbours.gaussian(rows, width) for width in (NEAR, WIDE))
        own = self.own.reshape(len(self.own), -1)
        blocks = [own[rows], near @ own, wide @ own]
        if self.centre is not None and self.selected is not None:
            used = np.unique(near.indices)
            attention = prototype_attention(self.own[used], self.centre, self.selected[used])
            attended = attention @ self.centre.reshape(len(self.centre), -1)
            blocks.append(near[:, used] @ attended)
        return np.stack(blocks, axis=1)

    def only(self, rows: NDArray[np.int64]) -> SlideFeatures:
        """Return these spots only."""
        selected = None if self.selected is None else self.selected[rows]
        return SlideFeatures(self.own[rows], self.centre, selected, self.neighbours.only(rows))

    def attention(self) -> NDArray[np.float16] | None:
        """(n, K) attention of every spot, see `prototype_attention`; None where prototypes are not used."""
        if self.centre is None or self.selected is None:
            return None
        weights = np.empty(self.selected.shape, np.float16)
        for start in range(0, len(weights), _ATTENTION_ROWS):
            rows = slice(start, start + _ATTENTION_ROWS)
            weights[rows] = prototype_attention(self.own[rows], self.centre, self.selected[rows])
        return weights


def slide_features(slide: HeadSlide, components: Components, block_bytes: int = BLOCK_BYTES) -> SlideFeatures:
    """Compute the features of a slide without looking at its expression; embeddings are read in blocks."""
    return _SlideParts.of(slide, components, block_bytes).features(np.arange(len(slide)))


def feature_blocks(
    slide: HeadSlide, components: Components, size: int, block_bytes: int = BLOCK_BYTES // 2
) -> FeatureBlocks:
    """Prepare the features of a slide block by block: those of the whole, without holding them.

    Of spots in no spatial order, whose neighbours are all over the slide, the whole is held.

    Parameters
    ----------
    size
        Blocks have a multiple of this number of spots.
    block_bytes
        Of the components of a block; embeddings are read in smaller ones.
    """
    parts = _SlideParts.of(slide, components, block_bytes // 4)
    step = size * max(1, block_bytes // (4 * size * int(np.prod(components.axes.shape[::2]))))
    blocks = list(spot_blocks(len(slide), step))
    needed = [parts.neighbours.reached(np.arange(rows.start, rows.stop), WIDE) for rows in blocks]
    if sum(map(len, needed)) > _MOST_READS * len(slide):
        blocks, needed = [slice(0, len(slide))], [np.arange(len(slide))]
    return FeatureBlocks(parts, tuple(blocks), tuple(needed))


@dataclass(frozen=True)
class FeatureBlocks:
    """Features of a slide's spots block by block, see `feature_blocks`; computed anew by each pass.

    Attributes
    ----------
    blocks
        Which spots each block is of.
    needed
        (m,) int64, the spots that it needs: its own, and their neighbours.
    """

    parts: _SlideParts
    blocks: tuple[slice, ...]
    needed: tuple[NDArray[np.int64], ...]

    def __iter__(self) -> Iterator[tuple[slice, SlideFeatures, NDArray[np.int64]]]:
        """Each block's spots, features of what it needs, and the (k,) places of its spots among these."""
        for rows, needed in zip(self.blocks, self.needed, strict=True):
            features = self.parts.features(needed)
            yield rows, features, np.searchsorted(needed, np.arange(rows.start, rows.stop))


@dataclass(frozen=True)
class _SlideParts:
    """What the features of a slide are made of."""

    slide: HeadSlide
    components: Components
    scaler: EmbeddingScaler | NormalScores
    centre: NDArray[np.float32] | None
    neighbours: SpatialNeighbours
    block_bytes: int

    @classmethod
    def of(cls, slide: HeadSlide, components: Components, block_bytes: int) -> _SlideParts:
        scaler = slide_scaler(slide, components.ranks)
        centre = None
        if slide.centre is not None and slide.selected is not None:
            centre = components.of(scaler.transform(slide.centre))
        neighbours = SpatialNeighbours(slide.xy, slide.valid, spot_pitch(slide.xy))
        return cls(slide, components, scaler, centre, neighbours, block_bytes)

    def features(self, rows: NDArray[np.int64]) -> SlideFeatures:
        """Of these spots (k,), in ascending order, as if the slide had no others."""
        own = np.empty((len(rows), *self.components.axes.shape[::2]), np.float32)
        for where, part in row_blocks(self.slide.embedding, rows, self.block_bytes):
            scaled = self.scaler.transform(self.slide.embedding[part])
            scaled[~self.slide.valid[part]] = 0.0
            own[where] = self.components.of(scaled)
        whole = len(rows) == len(self.slide)
        selected = None
        if self.centre is not None and self.slide.selected is not None:
            selected = self.slide.selected if whole else self.slide.selected[rows]
        return SlideFeatures(
            own, self.centre, selected, self.neighbours if whole else self.neighbours.only(rows)
        )


def prototype_attention(
    own: NDArray[np.float32], centre: NDArray[np.float32], selected: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Compute the attention of spots over their selected candidates.

    It is the softmax of the cosine similarity, averaged over magnifications. Spots and candidates are
    standardised within the slide, so that the cosine is that of their differences from the slide's mean.

    Parameters
    ----------
    own
        (n, M, c) spots.
    centre
        (K, M, c) candidates.
    selected
        (n, K) bool.

    Returns
    -------
    (n, K) float32; rows sum to 1, or to 0 for spots without selected candidates.
    """
    similarity = np.einsum("nmc,kmc->nk", _unit(own), _unit(centre), optimize=True) / own.shape[1]
    weight = np.where(selected, np.exp(similarity / TEMPERATURE), 0.0)
    total = weight.sum(axis=1, keepdims=True)
    shares = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    return np.asarray(shares, np.float32)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: NDArray[np.float32] = vectors / np.maximum(length, np.finfo(np.float32).tiny)
    return unit
