"""Predicted slides in a viewer: a gene's values are read from the .h5ad file when it is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import CohortSlide, Targets, Thumbnail, targets_from_counts
from mmap_st.errors import SlideError, first_line
from mmap_st.head import counts_on_panel
from mmap_st.head.runs import MEASURED, SPREAD, UNS, spot_diameter
from mmap_st.report.run_report import thumbnail_in
from mmap_st.report.viewer.shown_slide import (
    DIFFERENCE,
    DIFFERENCES,
    EXPRESSION,
    MEASURED_LAYER,
    PREDICTED,
    SPREAD_LAYER,
    SPREADS,
    Layer,
    ShownSlide,
    Values,
    best_gene,
)
from mmap_st.urls import Place, place_named

if TYPE_CHECKING:
    import h5py

#: Where the file has what the layers show.
_PLACES = {PREDICTED: "X", MEASURED_LAYER: f"layers/{MEASURED}", SPREAD_LAYER: f"layers/{SPREAD}"}
_TITLES = {
    PREDICTED: "predicted",
    MEASURED_LAYER: "measured",
    DIFFERENCE: "predicted − measured",
    SPREAD_LAYER: "spread of the prediction",
}
_COLOURS = {DIFFERENCE: DIFFERENCES, SPREAD_LAYER: SPREADS}
#: Columns of ``var`` that the gene shown first is chosen by.
_SCORES = ("cv_pcc", "ceiling")


def name_in(file: Path) -> str:
    """Name of the slide that a prediction is of.

    Raises
    ------
    SlideError
        If the file is damaged, or no prediction.
    """
    with _reading(file) as opened:
        return str(_about(opened, file)["slide"])


def predicted_slide(file: Path, name: str, row: CohortSlide | None) -> ShownSlide:
    """A prediction, without its values.

    Parameters
    ----------
    file, name
        The .h5ad file, and what the slide is called here.
    row
        Of the cohort: the image, and measured values where the file has none. None: neither.

    Raises
    ------
    SlideError
        If the file is damaged, or no prediction.
    """
    with _reading(file) as opened:
        about = _about(opened, file)
        xy = np.asarray(opened["obsm/spatial"], np.float64)
        ids, genes = _index(opened["obs"]), _index(opened["var"])
        var = opened["var"]
        gene_ids = tuple(map(str, _element(var["gene_ids"]))) if "gene_ids" in var else None
        scores = next((np.asarray(_element(var[key]), np.float64) for key in _SCORES if key in var), None)
        there = [name for name, place in _PLACES.items() if place in opened]
        spatial = _element(opened["uns/spatial"]) if "uns/spatial" in opened else {}
        if (
            xy.ndim != 2
            or xy.shape[1] < 2
            or any(_shape(opened[_PLACES[layer]]) != (len(ids), len(genes)) for layer in there)
        ):
            raise SlideError(f"{file}: its arrays do not fit each other; predict the slide again.")
    mpp = about.get("source_mpp")
    mpp = None if mpp is None else float(mpp)
    measured = None
    if MEASURED_LAYER not in there and row is not None and row.counts is not None:
        normalisation = str(about.get("normalisation", ""))
        measured = _FromCounts(row, ids, genes, normalisation, xy)
        there.append(MEASURED_LAYER)
    if MEASURED_LAYER in there:
        there.append(DIFFERENCE)
    domain = about.get("domain", {})
    return ShownSlide(
        name=name,
        units=str(about.get("units", "")),
        verdict=": ".join(filter(None, (str(domain.get("verdict", "")), str(domain.get("reasons", ""))))),
        xy=xy[:, :2],
        ids=ids,
        diameter_px=float(about["spot_diameter_px"])
        if "spot_diameter_px" in about
        else spot_diameter(xy, mpp),
        genes=genes,
        gene_ids=gene_ids,
        best=best_gene(genes, scores),
        layers={
            layer: Layer(_TITLES[layer], True, _COLOURS.get(layer, EXPRESSION))
            for layer in _TITLES
            if layer in there
        },
        read=_FromFile(file, genes, len(ids), measured),
        mpp=mpp,
        image=_image_of(about, row),
        thumbnail=_thumbnail(spatial),
    )


@dataclass(frozen=True)
class _FromCounts:
    """Measured values of a slide from its count table, read when they are first shown."""

    row: CohortSlide
    ids: tuple[str, ...]
    genes: tuple[str, ...]
    normalisation: str
    xy: NDArray[np.float64]

    @cached_property
    def targets(self) -> Targets:
        counts = counts_on_panel(self.row, self.ids, self.genes)
        return targets_from_counts(counts, self.genes, self.normalisation, self.xy)

    def column(self, place: int) -> Values:
        return self.targets.dense(columns=np.array([place])).ravel()


@dataclass(frozen=True)
class _FromFile:
    """Reads values of a gene: a column of the file's arrays, which are stored in blocks."""

    file: Path
    genes: tuple[str, ...]
    spots: int
    measured: _FromCounts | None

    @cached_property
    def place(self) -> dict[str, int]:
        return {gene: place for place, gene in enumerate(self.genes)}

    def __call__(self, layer: str, gene: str | None) -> Values:
        assert gene is not None
        if layer == DIFFERENCE:
            return self(PREDICTED, gene) - self(MEASURED_LAYER, gene)
        place = self.place[gene]
        if layer == MEASURED_LAYER and self.measured is not None:
            return self.measured.column(place)
        with _reading(self.file) as opened:
            values = _column(opened[_PLACES[layer]], place)
        if values.shape != (self.spots,):
            raise SlideError(f"{self.file} has changed; start the viewer again.")
        return values


@contextmanager
def _reading(file: Path) -> Iterator[h5py.File]:
    """A prediction's file, opened for reading; what is wrong with it becomes one sentence."""
    import h5py

    try:
        with h5py.File(file, "r") as opened:
            yield opened
    except SlideError:
        raise
    except Exception as error:  # of many kinds, by what is damaged
        raise SlideError(f"{file} cannot be read ({first_line(error)}); predict the slide again.") from error


def _about(opened: h5py.File, file: Path) -> Mapping[str, Any]:
    if f"uns/{UNS}" not in opened:
        raise SlideError(
            f"{file} is not a prediction of mmap: it has no uns[{UNS!r}]; name the folder of some."
        )
    about: Mapping[str, Any] = _element(opened[f"uns/{UNS}"])
    return about


def _element(item: Any) -> Any:
    from anndata.io import read_elem

    return read_elem(item)


def _index(frame: Any) -> tuple[str, ...]:
    return tuple(map(str, _element(frame[frame.attrs["_index"]])))


def _shape(item: Any) -> tuple[int, ...]:
    """Of an array, or of a sparse one, which other tools write."""
    return tuple(item.shape) if hasattr(item, "shape") else tuple(int(side) for side in item.attrs["shape"])


def _column(item: Any, place: int) -> Values:
    if hasattr(item, "shape"):
        return np.asarray(item[:, place], np.float32)
    return np.asarray(_element(item)[:, [place]].todense(), np.float32).ravel()


def _image_of(about: Mapping[str, Any], row: CohortSlide | None) -> Place | None:
    if row is not None and row.image is not None:
        return row.image
    named = about.get("image")
    return None if named is None else place_named(str(named))


def _thumbnail(spatial: Mapping[str, Any]) -> Thumbnail | None:
    try:
        return thumbnail_in(spatial)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # of another tool
