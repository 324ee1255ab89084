"""What a page shows of one slide's prototypes: where they are, their looks, and what attends to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmap_st.report.prototype_colours import order_by_similarity, prototype_colours

_TOP_GENES = 5


@dataclass(frozen=True)
class SlidePrototypes:
    """The prototypes of one slide that spots attend to most, in order of similarity.

    Attributes
    ----------
    encoder
        Whose embeddings they are of.
    weights
        (n, K) float32 attention of each spot; what is missing to 1 is on prototypes that no spot attends to
        most.
    nearest
        (n,) the prototype that a spot attends to most; -1 where it attends to none.
    shown_by
        (K,) the spot that attends to it most.
    colours
        (K, 3) red, green and blue from 0 to 1; similar prototypes have similar ones.
    genes
        Of each prototype, those predicted furthest above the slide's mean on the spots nearest to it.
    windows
        Pictures of those spots, by prototype; empty where the image cannot be read.
    window_um
        What a picture shows across, in micrometres; None where the slide's scale is not known.
    """

    encoder: str
    weights: NDArray[np.float32]
    nearest: NDArray[np.int64]
    shown_by: NDArray[np.int64]
    colours: NDArray[np.float64]
    genes: tuple[tuple[str, ...], ...]
    windows: dict[int, NDArray[np.uint8]]
    window_um: float | None

    @property
    def size(self) -> NDArray[np.int64]:
        """(K,) how many spots attend to each most."""
        return np.bincount(self.nearest[self.nearest >= 0], minlength=len(self.shown_by))

    def largest(self, number: int) -> NDArray[np.int64]:
        """The prototypes that most spots attend to most."""
        return np.argsort(-self.size, kind="stable")[:number]


def find_prototypes(
    attention: NDArray[np.float16], predicted: NDArray[np.float32], genes: Sequence[str], encoder: str
) -> SlidePrototypes | None:
    """What attention and predictions say of a slide's prototypes; there are no pictures yet.

    Parameters
    ----------
    attention
        (n, K) over all candidates.
    predicted
        (n, g) expression.
    genes
        (g,) names.
    encoder
        Whose embeddings the prototypes are of.

    Returns
    -------
    None where no spot attends to any.
    """
    every = np.asarray(attention, np.float32)
    attends = every.sum(axis=1) > 0
    if not attends.any():
        return None
    most = np.where(attends, every.argmax(axis=1), -1)
    used = np.unique(most[attends])
    weights = every[:, used]
    order = order_by_similarity(_standardised(weights[attends]).T)
    weights = np.ascontiguousarray(weights[:, order])
    place = np.full(every.shape[1] + 1, -1)  # the last is of -1
    place[used[order]] = np.arange(len(used))
    nearest = place[most]
    return SlidePrototypes(
        encoder=encoder,
        weights=weights,
        nearest=nearest,
        shown_by=weights.argmax(axis=0),
        colours=prototype_colours(np.arange(len(used))),
        genes=_top_genes(nearest, predicted, genes, len(used)),
        windows={},
        window_um=None,
    )


def _standardised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Columns with mean 0 and spread 1: their distances then go by their correlations."""
    spread = values.std(axis=0)
    centred: NDArray[np.float32] = values - values.mean(axis=0)
    scaled: NDArray[np.float32] = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    return scaled


def _top_genes(
    nearest: NDArray[np.int64], predicted: NDArray[np.float32], genes: Sequence[str], count: int
) -> tuple[tuple[str, ...], ...]:
    known = np.isfinite(predicted).all(axis=1) & (nearest >= 0)
    scores = _standardised(predicted[known])
    found = []
    for number in range(count):
        own = scores[nearest[known] == number]
        mean = own.mean(axis=0) if len(own) else np.zeros(len(genes))
        best = np.argsort(-mean, kind="stable")[:_TOP_GENES]
        found.append(tuple(genes[i] for i in best if mean[i] > 0))
    return tuple(found)
