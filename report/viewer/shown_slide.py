"""What a viewer shows of one slide: its spots, its layers, and where their values are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import Thumbnail
from mmap_st.urls import Place

Values: TypeAlias = NDArray[np.float32]
#: Gives (n,) values of a layer, of a gene where the layer has genes; NaN where there is none.
ReadValues: TypeAlias = Callable[[str, str | None], Values]

PREDICTED, MEASURED_LAYER, SPREAD_LAYER, DIFFERENCE = "predicted", "measured", "spread", "difference"
PLAIN = "spots"
#: Of spots that have nothing but a place; seen on tissue and on dark and light pages.
PLAIN_COLOUR = "#2171b5"
#: Names of colours that the page has; other layers bring their own.
EXPRESSION, SPREADS, DIFFERENCES = "expression", "spread", "difference"


@dataclass(frozen=True)
class Layer:
    """One way to colour the spots.

    Attributes
    ----------
    title
        For people.
    of_gene
        Whether it has values of each gene, or only one of each spot.
    colours
        Name of a palette of the page, or the colours of the values 0, 1, 2...
    """

    title: str
    of_gene: bool
    colours: str | tuple[str, ...]


@dataclass(frozen=True)
class ShownSlide:
    """One slide.

    Attributes
    ----------
    name, units, verdict
        Of the slide, of its values, and whether it is like those of training; empty where not known.
    xy
        (n, 2) centres of the spots in level-0 pixels.
    ids
        (n,) names of the spots.
    diameter_px
        Width of a spot in level-0 pixels.
    genes, gene_ids
        That can be chosen, and an id of each, or "".
    best
        The gene to begin with, or "".
    layers
        By name; the first is shown first.
    read
        Reads values.
    mpp
        Micrometres per level-0 pixel, or None.
    image, size_px
        The slide's image, and what its size was when spots were embedded; None where not known.
    thumbnail
        A picture of the slide, where there is one without the image.
    notes
        What to say of it.
    """

    name: str
    units: str
    verdict: str
    xy: NDArray[np.float64]
    ids: tuple[str, ...]
    diameter_px: float
    genes: tuple[str, ...]
    gene_ids: tuple[str, ...] | None
    best: str
    layers: dict[str, Layer]
    read: ReadValues
    mpp: float | None
    image: Place | None
    size_px: tuple[int, int] | None = None
    thumbnail: Thumbnail | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def known_genes(self) -> frozenset[str]:
        """The genes that there are."""
        return frozenset(self.genes)

    def has(self, layer: str, gene: str | None) -> bool:
        """Whether there are such values to read."""
        found = self.layers.get(layer)
        return found is not None and (gene in self.known_genes if found.of_gene else gene is None)


def best_gene(genes: Sequence[str], scores: NDArray[np.float64] | None) -> str:
    """The gene of the highest score, or the first."""
    if scores is None or not np.isfinite(scores).any():
        return genes[0] if genes else ""
    return genes[int(np.nanargmax(scores))]
