"""Features of the `mmap` head: principal components of spots, of their neighbours and of prototypes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmap_st.extract.store import BLOCK_BYTES, row_blocks
from mmap_st.head.basis import Components, slide_scaler
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.neighbourhood import SpatialNeighbours, spot_pitch

#: Standard deviations of the two averages over neighbours, in spot pitches (docs/recipe.md).
NEAR, WIDE = 0.7, 1.5
#: Weights of the four groups of features: the spot, its near and its wide neighbourhood, prototypes.
SHARES = (1.0, 1.0, 1.0, 2.0)
#: Attention over selected prototypes is the softmax of the cosine divided by this.
TEMPERATURE = 0.3
# Spots whose attention is computed at once.
_ATTENTION_ROWS = 8_192


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
    own = np.empty((len(slide), *components.axes.shape[::2]), np.float32)
    scaler = slide_scaler(slide, components.ranks)
    for _, rows in row_blocks(slide.embedding, np.arange(len(slide)), block_bytes):
        scaled = scaler.transform(slide.embedding[rows])
        scaled[~slide.valid[rows]] = 0.0
        own[rows] = components.of(scaled)
    neighbours = SpatialNeighbours(slide.xy, slide.valid, spot_pitch(slide.xy))
    if slide.centre is None or slide.selected is None:
        return SlideFeatures(own, None, None, neighbours)
    centre = components.of(scaler.transform(slide.centre))
    return SlideFeatures(own, centre, slide.selected, neighbours)


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
