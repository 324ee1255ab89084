"""One slide as the `mmap` head sees it: components of its spots, of their surroundings and prototypes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmap_st.extract.store import BLOCK_BYTES, row_blocks
from mmap_st.head.basis import Components
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.neighbourhood import Surroundings, spot_pitch

#: Widths of the two averages over neighbours, in spot pitches (docs/recipe.md).
NEAR, WIDE = 0.7, 1.5
#: Weights of the four blocks: the spot, what is near, what is wide around it, prototypes.
SHARES = (1.0, 1.0, 1.0, 2.0)
#: Attention over selected prototypes is the softmax of the cosine over this.
TEMPERATURE = 0.3


@dataclass(frozen=True)
class SlideFeatures:
    """Components of one slide.

    Attributes
    ----------
    own
        (n, M, c) float32; 0 for spots that are not valid.
    centre
        (K, M, c) float32, its prototype candidates; None where they are not used.
    selected
        (n, K) bool, the candidates that each spot attends to.
    surroundings
        Where its spots lie.
    """

    own: NDArray[np.float32]
    centre: NDArray[np.float32] | None
    selected: NDArray[np.bool_] | None
    surroundings: Surroundings

    def blocks(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """(k, B, M * c): the spot itself, what is near, what is wide around it, and its prototypes.

        The prototypes are averaged over what is near too: neighbours attend to much the same ones. What is
        not kept for all spots is computed for these `rows` alone; None: all.
        """
        rows = np.arange(len(self.own)) if rows is None else rows
        near, wide = (self.surroundings.gaussian(rows, width) for width in (NEAR, WIDE))
        own = self.own.reshape(len(self.own), -1)
        blocks = [own[rows], near @ own, wide @ own]
        if self.centre is not None and self.selected is not None:
            neighbours = np.unique(near.indices)
            attention = prototype_attention(self.own[neighbours], self.centre, self.selected[neighbours])
            attended = attention @ self.centre.reshape(len(self.centre), -1)
            blocks.append(near[:, neighbours] @ attended)
        return np.stack(blocks, axis=1)


def slide_features(slide: HeadSlide, components: Components, block_bytes: int = BLOCK_BYTES) -> SlideFeatures:
    """Compute the features of a slide, its embeddings read in blocks; its expression is not looked at."""
    own = np.empty((len(slide), *components.axes.shape[::2]), np.float32)
    for _, rows in row_blocks(slide.embedding, np.arange(len(slide)), block_bytes):
        own[rows] = components.of(slide.standardised(rows))
    surroundings = Surroundings(slide.xy, slide.valid, spot_pitch(slide.xy))
    if slide.centre is None or slide.selected is None:
        return SlideFeatures(own, None, None, surroundings)
    centre = components.of(slide.standard.of(slide.centre))
    return SlideFeatures(own, centre, slide.selected, surroundings)


def prototype_attention(
    own: NDArray[np.float32], centre: NDArray[np.float32], selected: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """(n, K) softmax over each spot's selected candidates of the cosine, averaged over magnifications.

    Spots (n, M, c) and candidates (K, M, c) are standardised within the slide, so that the cosine is that of
    their differences from the slide's mean. A spot without selected candidates attends to none.
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
