"""Feature stores as files: one packed into a file, several merged, and what no one needs removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmap_st.extract.store import (
    MergeReport,
    PackReport,
    UpkeepReport,
    merge_into,
    pack_into,
    remove_leftovers,
)
from mmap_st.workflows.arguments import StoreLike, open_store
from mmap_st.workflows.display import show_progress, warn_left_out


def pack_store(
    store: StoreLike, out: str | Path, *, overwrite: bool = False, progress: bool = True
) -> PackReport:
    """Write a feature store into one file, for places that limit the number of files, or for others.

    All that reads a store takes the file as it takes the folder, and gives the same numbers; it cannot be
    written to. The same content gives the same bytes. What is unfinished is left out.

    Parameters
    ----------
    store
        The store, or its path.
    out
        The file, such as ``features.zarr.zip``.
    overwrite
        Replace a packed store that is there.
    progress
        Whether to show it.

    Returns
    -------
    ``slides``, the names of those in the file; ``files`` and ``bytes``, how many files of the store it holds
    and its size; ``left_out`` and ``failed``, by slide, what is unfinished, and what is damaged.

    Warns
    -----
    SlidesLeftOutWarning
        If something is not in the file.

    Raises
    ------
    RequestError
        If a slide is being written, nothing is complete, or the file exists or cannot be written.

    Examples
    --------
    >>> mm.pack_store(store, folder / "features.zarr.zip", progress=False).slides
    ['A1', 'B1', 'C1']
    >>> mm.FeatureStore(folder / "features.zarr.zip").packed
    True
    """
    with show_progress(progress) as tell:
        report = pack_into(open_store(store), Path(out), overwrite=overwrite, progress=tell)
    warn_left_out(report.failed, report.left_out)
    return report


def merge_stores(stores: Sequence[StoreLike], out: str | Path, *, progress: bool = True) -> MergeReport:
    """Copy the slides of several feature stores into one; nothing is embedded again.

    Encoders, magnifications and prototypes of a slide that several stores have come together where its spots
    and image are the same. Every copy is compared with its check sums before it counts. What is there already
    is not copied again, so the same call goes on where one was stopped.

    Parameters
    ----------
    stores
        Stores or their paths, folders or packed; one alone is copied, or unpacked.
    out
        Folder of the store that they are merged into; made where there is none.
    progress
        Whether to show it.

    Returns
    -------
    ``copied`` and ``there``, by slide, how many magnifications were copied, and were there before;
    ``left_out``, what is unfinished; ``failed``, why something could not be merged.

    Warns
    -----
    SlidesLeftOutWarning
        If something of a slide could not be merged, or is unfinished; the others are merged.

    Raises
    ------
    RequestError
        If something is no store, or `out` is packed or cannot be written.

    Examples
    --------
    >>> mm.merge_stores([store], folder / "merged.zarr", progress=False).copied
    {'A1': 2, 'B1': 2, 'C1': 2}
    >>> mm.merge_stores([store], folder / "merged.zarr", progress=False).there
    {'A1': 2, 'B1': 2, 'C1': 2}
    """
    opened = [open_store(store) for store in stores]
    with show_progress(progress) as tell:
        report = merge_into(opened, Path(out), tell)
    warn_left_out(report.failed, report.left_out)
    return report


def tidy_store(
    store: StoreLike,
    *,
    incomplete: bool = False,
    prototypes: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> UpkeepReport:
    """Remove what no one needs of a feature store.

    That is drafts of writers that died, journals of complete magnifications, and locks that nobody holds. A
    slide that is being written is left alone, and so is every file that is not the store's.

    Parameters
    ----------
    store
        The store, or its path.
    incomplete
        Also remove magnifications that are not complete; else `embed` finishes them.
    prototypes
        Also remove prototypes of embeddings that are not there any more.
    dry_run
        Only look.
    progress
        Whether to show it.

    Returns
    -------
    ``leftovers``, each with ``path``, ``what`` and ``bytes``; ``locked``, ``foreign`` and ``failed``: slides
    that are being written, files that are not the store's, and slides that are damaged.

    Warns
    -----
    SlidesLeftOutWarning
        If a slide is being written, or is damaged.

    Raises
    ------
    RequestError
        If the store is packed, or something cannot be removed.

    Examples
    --------
    >>> mm.tidy_store(store, dry_run=True, progress=False).foreign
    []
    """
    with show_progress(progress) as tell:
        report = remove_leftovers(
            open_store(store), incomplete=incomplete, prototypes=prototypes, dry_run=dry_run, progress=tell
        )
    warn_left_out(report.failed, report.locked)
    return report
