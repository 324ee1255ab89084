"""Tables on servers, as files that readers read: fetched when they are needed, and kept for later runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmap_st.data.cohort import CohortSlide, LocalSlide
from mmap_st.errors import SpotsError
from mmap_st.fetching import cache_folder, cached, look_at, named_by_url
from mmap_st.urls import Place, Url


def local_table(place: Place) -> Path:
    """A table where it lies, or the copy of one on a server.

    Raises
    ------
    RemoteError
        If a server does not give it.
    """
    return cached(look_at(place)) if isinstance(place, Url) else place


@contextmanager
def local_tables(slide: CohortSlide, reader: str, beside: Sequence[str] | None) -> Iterator[LocalSlide]:
    """A row with its spot and count tables on this machine; errors that are raised within name their URLs.

    Its image stays where it is: of one on a server, the row has a path at which nothing lies.

    Parameters
    ----------
    reader
        Name of the reader, for messages.
    beside
        Files beside the spots that are read with them; None: the reader reads a whole folder.

    Raises
    ------
    RemoteError
        If a server does not give them.
    SpotsError
        If the reader reads more than the files that a row names.
    """
    copies: dict[Path, Url] = {}
    folders: dict[Path, Url] = {}

    def local(place: Place | None, neighbours: Sequence[str] = ()) -> Path | None:
        if not isinstance(place, Url):
            return place
        if beside is None:
            raise SpotsError(
                f"{place}: the reader {reader} reads a whole folder, which is not fetched; copy it to a disk,"
                " and name it there."
            )
        if place in copies.values():
            return next(copy for copy, url in copies.items() if url == place)  # one file for both
        copy = cached(look_at(place, neighbours))
        copies[copy] = place
        folders[copy.parent] = place.parent
        return copy

    image = slide.image
    if isinstance(image, Url):
        nowhere = cache_folder() / "images" / image.name
        copies[nowhere] = image
        image = nowhere
    spots, counts = local(slide.spots, beside or ()), local(slide.counts)
    # The path of a file begins with that of its folder.
    with named_by_url({**copies, **folders}):
        yield LocalSlide.of(slide, image=image, spots=spots, counts=counts)
