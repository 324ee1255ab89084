"""The slides of a viewer: which there are, and those that are looked at, opened when they are."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmap_st.data import Cohort, CohortSlide, some
from mmap_st.errors import (
    MmapError,
    RequestError,
    SlideError,
    SlidesFailedError,
    did_you_mean,
    of_one_slide,
)
from mmap_st.extract.store import FeatureStore, is_store
from mmap_st.files import refuse_special
from mmap_st.report.gene_choice import GeneChoice
from mmap_st.report.run_report import known_cards, prediction_files
from mmap_st.report.viewer.predictions import name_in, predicted_slide
from mmap_st.report.viewer.shown_slide import ShownSlide
from mmap_st.report.viewer.stored import stored_slide
from mmap_st.urls import url_of

#: Slides whose spots are kept; each has a few megabytes, and its counts where a cohort has them.
_MOST_OPEN = 3


@dataclass
class Catalogue:
    """The slides that can be shown.

    Attributes
    ----------
    title
        Of the viewer.
    openers
        What opens each slide, by its name.
    failed
        Why others cannot be shown, by name.
    genes
        That were asked for, or None.
    """

    title: str
    openers: dict[str, Callable[[], ShownSlide]]
    failed: dict[str, str] = field(default_factory=dict)
    genes: GeneChoice | None = None
    _open: OrderedDict[str, ShownSlide] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the slides, in order."""
        return tuple(self.openers)

    def __getitem__(self, name: str) -> ShownSlide:
        """A slide.

        Raises
        ------
        KeyError
            If there is none of that name.
        MmapError
            If it cannot be read.
        """
        opener = self.openers[name]
        with self._lock:
            known = self._open.get(name)
            if known is None:
                try:
                    known = self._preferring(opener())
                except MmapError:
                    raise
                except Exception as error:  # whatever it is, it is that slide's
                    raise of_one_slide(error) from error
                self._open[name] = known
                if len(self._open) > _MOST_OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(name)
            return known

    def _preferring(self, slide: ShownSlide) -> ShownSlide:
        """The slide, the genes that were asked for before the others."""
        if self.genes is None:
            return slide
        ids = slide.gene_ids
        first = self.genes.of_slide(slide.name, slide.genes, ids or [""] * len(slide.genes))
        if not first:
            return slide
        place = {gene: number for number, gene in enumerate(slide.genes)}
        order = [place[gene] for gene in dict.fromkeys([*first, *slide.genes])]
        return replace(
            slide,
            genes=tuple(slide.genes[i] for i in order),
            gene_ids=None if ids is None else tuple(ids[i] for i in order),
            best=first[0],
        )


def open_catalogue(
    where: Path, cohort: Cohort | None = None, genes: Sequence[str] | None = None
) -> Catalogue:
    """The slides of a folder of predictions, a run or a feature store.

    Parameters
    ----------
    where
        The folder, a prediction's .h5ad file, or the store.
    cohort
        Where images and measured values are from, where the files do not say. None: neither.
    genes
        Which to show first, by name or id.

    Raises
    ------
    RequestError
        If there is nothing to show, or no slide has any of the genes.
    SlidesFailedError
        If none of the slides can be read.
    """
    rows = {} if cohort is None else {row.slide: row for row in cohort.slides}
    if (url := url_of(where)) is not None:
        return _of_store(FeatureStore(url), rows)
    refuse_special(where, RequestError)
    if not where.exists():
        raise RequestError(f"{where} does not exist; name a folder of predictions, a run or a feature store.")
    if is_store(where):
        found = _of_store(FeatureStore(where), rows)
        cards = []
    else:
        found = _of_predictions(where, rows)
        cards = known_cards(where)
    missing = [name for name in rows if name not in found.openers and name not in found.failed]
    if rows and len(missing) == len(rows):
        raise RequestError(
            f"none of the slides of --cohort ({some(tuple(rows))}) is in {where} ({some(found.names)})."
        )
    if genes is not None:
        found.genes = GeneChoice(genes, cards)
    return found


def _title(store: FeatureStore) -> str:
    return store.path.name if store.read_only else store.folder.resolve().name


def _of_store(store: FeatureStore, rows: dict[str, CohortSlide]) -> Catalogue:
    if not store.slides:
        raise RequestError(f"{store.path} has no slides yet; `mmap extract` adds them.")
    openers: dict[str, Callable[[], ShownSlide]] = {}
    failed: dict[str, str] = {}
    for name in store.slides:
        try:
            if not store.slide(name).has_spots():
                raise SlideError("it has no spots yet; run `mmap extract` on it again.")
        except MmapError as error:
            failed[name] = str(error)
            continue
        openers[name] = _opener(store, name, rows.get(name))
    return _checked(Catalogue(f"{_title(store)}: embedded slides", openers, failed))


def _opener(store: FeatureStore, name: str, row: CohortSlide | None) -> Callable[[], ShownSlide]:
    return lambda: stored_slide(store, name, row)


def _of_predictions(where: Path, rows: dict[str, CohortSlide]) -> Catalogue:
    files = prediction_files(where)
    openers: dict[str, Callable[[], ShownSlide]] = {}
    failed: dict[str, str] = {}
    for file in files:
        try:
            own = name_in(file)
        except MmapError as error:
            failed[file.stem] = str(error)
            continue
        name = f"{own} ({file.name})" if own in openers else own
        openers[name] = _opener_of_file(file, name, rows.get(own))
    return _checked(Catalogue(f"{where.resolve().name}: predicted gene expression", openers, failed))


def _opener_of_file(file: Path, name: str, row: CohortSlide | None) -> Callable[[], ShownSlide]:
    return lambda: predicted_slide(file, name, row)


def _checked(catalogue: Catalogue) -> Catalogue:
    if not catalogue.openers:
        raise SlidesFailedError(catalogue.failed)
    return catalogue


def first_slide(catalogue: Catalogue, slide: str | None) -> str:
    """The slide to begin with: the one asked for, or the first that has the genes asked for.

    Raises
    ------
    RequestError
        If there is no such slide, or none that has one of the genes.
    MmapError
        If it cannot be read.
    """
    if slide is not None and slide not in catalogue.openers:
        reason = f" ({catalogue.failed[slide]})" if slide in catalogue.failed else ""
        raise RequestError(
            f"--slide {slide}: there is no such slide to show"
            f"{reason or did_you_mean(slide, catalogue.names)}; there are {some(catalogue.names)}."
        )
    begin = catalogue.names[0] if slide is None else slide
    if catalogue.genes is None:
        if slide is None:
            return _first_readable(catalogue)
        catalogue[begin]
        return begin
    for name in (begin, *catalogue.names) if slide is None else (begin,):
        shown = catalogue[name]
        if not shown.genes:
            raise RequestError(
                f"{name} has no genes to show; `mmap view` shows those of predictions, or of --cohort with"
                " counts."
            )
        if shown.best in catalogue.genes.of_slide(name, shown.genes, shown.gene_ids):
            return name
    raise RequestError(f"--genes: {'; '.join(catalogue.genes.notes)}.")


def _first_readable(catalogue: Catalogue) -> str:
    failed: dict[str, str] = {}
    for name in catalogue.names:
        try:
            catalogue[name]
        except MmapError as error:
            failed[name] = str(error)
        else:
            return name
    raise SlidesFailedError(failed)
