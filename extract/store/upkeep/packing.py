"""A feature store as one file: a zip archive of what is complete in it."""

from __future__ import annotations

import errno
import stat
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mmap_st.errors import SlideLockedError, StoreError, agreeing
from mmap_st.extract.store.nodes import folder_of, subgroup
from mmap_st.extract.store.reader import FeatureStore, store_errors
from mmap_st.extract.store.recipe import encode_name
from mmap_st.extract.store.soundness import PROTOTYPES, SoundParts, files_of, sound_parts
from mmap_st.extract.store.storage import MOST_FILES, ROOT, is_packed_store
from mmap_st.extract.store.writing import slide_lock
from mmap_st.files import (
    InUseError,
    check_file_out,
    file_name,
    number_of,
    passing_lock,
    replacing,
    writing,
)
from mmap_st.progress import ProgressCallback

# The first that an archive can have.
_DATE = (1980, 1, 1, 0, 0, 0)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass
class PackReport:
    """What was packed.

    Attributes
    ----------
    slides
        Names of the slides in the file.
    files, bytes
        How many files of the store are in it, and its size.
    left_out
        Of each slide, what is not complete and so not in the file.
    failed
        Why what is complete of a slide, or all of it, is damaged and not in the file.
    """

    slides: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def pack_into(
    store: FeatureStore, out: Path, *, overwrite: bool = False, progress: ProgressCallback = lambda text: None
) -> PackReport:
    """Write what is complete and as it was written into one file; the same content gives the same bytes.

    Parameters
    ----------
    store
        The store, which may be packed itself.
    out
        The file; its folder is made where it does not exist.
    overwrite
        Whether a packed store that is there may be replaced.

    Returns
    -------
    What is in the file, and what is not.

    Raises
    ------
    RequestError
        If a slide is being written, nothing is complete, or `out` holds something else or cannot be written.
    """
    check_file_out(out, "FILE")
    _check_free(out, overwrite)
    if not store.read_only and out.resolve().is_relative_to(store.folder.resolve()):
        raise StoreError(f"FILE {out} is inside the store; name a file beside it.")
    for name in store.slides:
        with _not_written(store, name):
            pass  # rather said now than after hours
    with writing(out, "FILE", "file"):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with passing_lock(out.with_name(file_name(f".{out.name}", ".lock"))):
                _check_free(out, overwrite)  # another process may have been first
                with replacing(out) as draft:
                    report = _write(store, draft, progress)
                    report.bytes = draft.stat().st_size
        except InUseError as error:
            raise StoreError(f"FILE {out} is being written by another process; name another file.") from error
    return report


def _check_free(out: Path, overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise StoreError(f"FILE {out} exists; name another file, or give --overwrite to replace it.")
    if out.exists() and not is_packed_store(out):
        raise StoreError(f"FILE {out} is not a packed store, and would be replaced; name another file.")


def _write(store: FeatureStore, file: Path, progress: ProgressCallback) -> PackReport:
    report = PackReport()
    place = folder_of(store.root)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def add(key: str) -> None:
            with store_errors(store.path):
                data = place.bytes_of(key)
            if data is None:
                return  # a chunk without content, of an earlier version
            info = zipfile.ZipInfo(key, _DATE)
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.create_system = 3  # Unix, which the mode above is of
            archive.writestr(info, data)
            report.files += 1
            if report.files > MOST_FILES:
                raise StoreError(
                    f"{store.path} has more than {MOST_FILES:,} files, too many for one archive; embed slides"
                    " into several stores, and pack each."
                )

        add(ROOT)
        # By the slides' folders, so that files are sorted: the same content gives the same bytes.
        for name in sorted(store.slides, key=encode_name):
            progress(f"packing {name}")
            with _not_written(store, name):
                with store_errors(store.path):
                    keys = _files_of_slide(store, name, report)
                for key in keys:
                    add(key)
    if not report.slides:
        why = f" ({next(iter(report.failed.values())).rstrip('.')})" if report.failed else ""
        raise StoreError(f"{store.path} has no slide that is complete{why}; nothing is packed.")
    return report


def _files_of_slide(store: FeatureStore, name: str, report: PackReport) -> list[str]:
    """Keys of what is complete and sound of a slide, in order; notes what is not."""
    try:
        slide = store.slide(name)
        spots = subgroup(slide.group, "spots")
        if not slide.has_spots() or spots is None:
            report.left_out[name] = "its spots are not written yet"
            return []
        slide.spot_ids(), slide.spot_xy()
        found, broken = sound_parts(slide, verify=True)
        unfinished = [text for parts in found for text in parts.unfinished]
        keys = [f"{slide.group.path}/{ROOT}", *files_of(spots), *_files_of_encoders(found)]
    except StoreError as error:
        report.failed[name] = str(error)
        return []
    if broken:
        report.failed[name] = broken
    if unfinished:
        are = agreeing(len(unfinished), "is", "are")
        report.left_out[name] = f"{', '.join(unfinished)} {are} unfinished"
    report.slides.append(name)
    return sorted(keys)


def _files_of_encoders(found: list[SoundParts]) -> Iterator[str]:
    for parts in found:
        for magnification in parts.magnifications:
            yield from files_of(magnification.group)
        for group in parts.prototypes:
            yield from files_of(group)
        if parts.prototypes:
            yield f"{parts.group.path}/{PROTOTYPES}/{ROOT}"
        if parts.prototypes or parts.magnifications:
            yield f"{parts.group.path}/{ROOT}"


@contextmanager
def _not_written(store: FeatureStore, name: str) -> Iterator[None]:
    """Keep others from writing a slide meanwhile.

    Raises
    ------
    StoreError
        If someone is writing it.
    """
    if store.read_only:
        yield
        return
    with ExitStack() as held:
        try:
            held.enter_context(slide_lock(store.folder, encode_name(name)))
        except SlideLockedError as error:
            raise StoreError(f"slide {name}: {error}") from error
        except StoreError as error:
            # Where no lock can be made, nothing can be written either.
            if not isinstance(error.__cause__, OSError) or number_of(error.__cause__) not in _READ_ONLY:
                raise
        yield
