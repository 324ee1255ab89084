"""What a store can be: a folder, a packed file, or a place in a bucket; each reads alike."""

from __future__ import annotations

from typing import TypeAlias

from mmap_st.errors import StoreError
from mmap_st.extract.store.storage.bucket import StoreBucket, read_by_url
from mmap_st.extract.store.storage.folder import StoreFolder
from mmap_st.extract.store.storage.zipped import ROOT, StoreZip, is_packed_store, packed_error
from mmap_st.files import is_archive
from mmap_st.urls import Place, Url, place_of

#: What a store is read from.
StorePlace: TypeAlias = StoreFolder | StoreZip | StoreBucket


def opened_place(place: Place, *, writable: bool) -> StorePlace:
    """What is at a path or URL, for Zarr; it need not be a store."""
    if isinstance(place, Url):
        return StoreBucket(place)
    return StoreZip(place) if is_archive(place) else StoreFolder(place, read_only=not writable)


def is_store(place: Place) -> bool:
    """Whether a feature store, or another Zarr group, is there: a folder, packed into a file, or by URL."""
    place = place_of(place)
    if isinstance(place, Url):
        return place.lists and StoreBucket(place).bytes_of(ROOT) is not None
    return (place / ROOT).is_file() or is_packed_store(place)


def refuse_web(place: Place) -> None:
    """Refuse a web server, which gives files and cannot tell which there are.

    Raises
    ------
    StoreError
        If that is what the URL is of.
    """
    if isinstance(place, Url) and not place.lists:
        raise StoreError(
            f"{place} is on a web server, which cannot list what a store has; copy the store to a disk, or"
            " into an object store."
        )


def refuse_read_only(place: Place) -> None:
    """Refuse to write where stores are only read: to a packed one, or by URL.

    Raises
    ------
    RequestError
        If that is what it is.
    """
    place = place_of(place)
    if isinstance(place, Url):
        raise read_by_url(place)
    if is_archive(place):
        raise packed_error(place)
