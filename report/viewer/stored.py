"""Slides of a feature store in a viewer: where their prototypes are, and measured genes from a cohort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import (
    NORMALISATIONS,
    CohortSlide,
    Counts,
    are_squares,
    normalisation_of,
    targets_from_counts,
)
from mmap_st.errors import MmapError, counted
from mmap_st.extract.store import FeatureStore
from mmap_st.head import counts_of_spots
from mmap_st.head.runs import spot_diameter
from mmap_st.prototypes import Candidates, candidates_in, selection_space
from mmap_st.report.prototype_colours import order_by_similarity, prototype_colours
from mmap_st.report.viewer.shown_slide import (
    EXPRESSION,
    MEASURED_LAYER,
    PLAIN,
    PLAIN_COLOUR,
    Layer,
    ShownSlide,
    Values,
)


def stored_slide(store: FeatureStore, name: str, row: CohortSlide | None) -> ShownSlide:
    """A slide of a store, without the values of genes.

    Parameters
    ----------
    store, name
        The store, and the slide's name in it.
    row
        Of the cohort: the image, and measured values. None: neither.

    Raises
    ------
    StoreError
        If the slide is damaged.
    """
    stored = store.slide(name)
    ids, xy = stored.spot_ids(), stored.spot_xy()
    layers: dict[str, Layer] = {}
    labels: dict[str, Values] = {}
    for number, (of, candidates) in enumerate(candidates_in(stored).items()):
        key = f"prototypes{number}"
        order = order_by_similarity(selection_space(candidates.centre))
        colours = tuple(map(_hex, prototype_colours(order)))
        title = f"{counted(len(candidates.size), 'prototype')} of {of}"
        layers[key] = Layer(title, False, colours)
        labels[key] = _labels(candidates)
    counts: Counts | None = None
    normalisation, notes = "", []
    if row is not None and row.counts is not None:
        try:
            counts = counts_of_spots(row, ids)
        except MmapError as error:
            notes.append(f"no measured values: {str(error).removesuffix('.')}")
        else:
            normalisation = normalisation_of({name: counts})
            layers[MEASURED_LAYER] = Layer("measured", True, EXPRESSION)
    if not layers:
        notes.append("the store has no prototypes of this slide, so spots are shown without values")
        layers[PLAIN] = Layer("spots", False, (PLAIN_COLOUR,))
        labels[PLAIN] = np.zeros(len(ids), np.float32)
    fills = stored.spots_made_by() is not None or are_squares(ids)
    genes = () if counts is None else counts.genes
    return ShownSlide(
        name=name,
        units=NORMALISATIONS[normalisation].units if normalisation else "",
        verdict="",
        xy=xy,
        ids=ids,
        diameter_px=spot_diameter(xy, stored.source_mpp, fills=fills),
        genes=genes,
        gene_ids=None if counts is None else counts.gene_ids,
        best="" if counts is None else _most_counted(counts),
        layers=layers,
        read=_FromStore(labels, counts, normalisation),
        mpp=stored.source_mpp,
        image=None if row is None else row.image,
        size_px=stored.size_px,
        notes=tuple(notes),
    )


def _labels(candidates: Candidates) -> Values:
    label = candidates.label.astype(np.float32)
    label[candidates.label < 0] = np.nan
    return label


def _hex(colour: NDArray[np.float64]) -> str:
    red, green, blue = (round(float(part) * 255) for part in np.clip(colour, 0, 1))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _most_counted(counts: Counts) -> str:
    """The gene of the most counts: it is seen everywhere, whatever the tissue."""
    total = np.asarray(counts.matrix.sum(axis=0)).ravel()
    return counts.genes[int(np.argmax(total))] if len(total) else ""


@dataclass(frozen=True)
class _FromStore:
    """Reads values: labels are there, and a gene's column of the counts becomes targets when it is chosen."""

    labels: Mapping[str, Values]
    counts: Counts | None
    normalisation: str

    def __call__(self, layer: str, gene: str | None) -> Values:
        if gene is None:
            return self.labels[layer]
        assert self.counts is not None
        return targets_from_counts(self.counts, (gene,), self.normalisation).dense().ravel()
