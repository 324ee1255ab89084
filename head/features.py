"""One slide as the `mmap` head sees it: components of its spots, of their surroundings and prototypes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mmap_st.head.components import Components
from mmap_st.head.context import gaussian_neighbours, spot_pitch
from mmap_st.head.slides import HeadSlide
from mmap_st.head.standardise import standardise

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
    attention
        (n, K) float32, how much each spot attends to each candidate: rows sum to 1, and candidates that are
        not selected get 0.
    near, wide
        (n, n) averages over neighbours.
    """

    own: NDArray[np.float32]
    centre: NDArray[np.float32] | None
    attention: NDArray[np.float32] | None
    near: sparse.csr_array
    wide: sparse.csr_array

    def blocks(self) -> list[NDArray[np.float32]]:
        """(n, M * c) each: the spot itself, what is near, what is wide around it, and its prototypes.

        The prototypes are averaged over what is near too: neighbours attend to much the same ones.
        """
        own = self.own.reshape(len(self.own), -1)
        blocks = [own, self.near @ own, self.wide @ own]
        if self.centre is not None and self.attention is not None:
            blocks.append(self.near @ (self.attention @ self.centre.reshape(len(self.centre), -1)))
        return blocks


def slide_features(slide: HeadSlide, components: Components) -> SlideFeatures:
    """Compute the features of a slide; its expression is not looked at."""
    embedding, centre = standardise(slide)
    own = components.of(embedding)
    pitch = spot_pitch(slide.xy)
    near, wide = (gaussian_neighbours(slide.xy, slide.valid, width, pitch) for width in (NEAR, WIDE))
    if centre is None or slide.selected is None:
        return SlideFeatures(own, None, None, near, wide)
    reduced = components.of(centre)
    return SlideFeatures(own, reduced, prototype_attention(own, reduced, slide.selected), near, wide)


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
