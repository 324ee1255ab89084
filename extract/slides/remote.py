"""Slides on servers: fetched whole to a stage, on which they stay for as long as they are read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from mmap_st.errors import ImageError, RequestError, first_line, printable
from mmap_st.extract.slides.staging import GIGABYTE, Stage, names_others, room_on, stage_of
from mmap_st.fetching import CACHE_VARIABLE, RemoteFiles, cache_folder, fetch, find, named_by_url
from mmap_st.files import is_dicom
from mmap_st.urls import Place, Url

_LOG = logging.getLogger(__name__)
_IN_SEVERAL_FILES = (
    "is a slide in several files that name each other, which are not known before they are read"
)


def image_files(url: Url) -> RemoteFiles:
    """The files of a slide on a server, as they are there now: of MRXS two parts, of a folder all.

    Raises
    ------
    ImageError
        If it is not there, or may need others that are not known.
    RemoteError
        If the server refuses.
    """
    suffix = Path(url.name).suffix.lower()
    if suffix in (".vms", ".vmu", ".dcm") or (suffix == ".mrxs" and not url.lists):
        raise _of_several(url, suffix)
    beside = (url.name[: -len(suffix)],) if suffix == ".mrxs" else ()
    found = find(url, beside)
    if found is None:
        raise ImageError(f"the image {url} does not exist; correct the URL in the cohort.")
    if beside and len(found.files) == 1:
        raise ImageError(f"{url} lacks the folder {beside[0]} that belongs beside it; copy it there.")
    return found


def _of_several(url: Url, suffix: str) -> ImageError:
    if suffix == ".dcm":
        return ImageError(
            f"{url} is one file of a DICOM slide; give the URL of the folder that holds its files alone."
        )
    return ImageError(f"{url} {_IN_SEVERAL_FILES}; copy them to a disk, and name it there.")


@contextmanager
def fetched(files: RemoteFiles, stage: Stage, stop: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """A slide's copy on the stage, for as long as it is used; waits until there is room.

    Errors that are raised within name the slide, not its copy.

    Raises
    ------
    ImageError
        If it is larger than the stage, does not fit on its disk, or needs other files.
    RemoteError
        If it cannot be fetched, or was replaced since it was looked at.
    StoppedError
        If `stop` requests it.
    """
    url = files.url
    if files.size > stage.most_bytes:
        raise ImageError(
            f"{url} has {files.size / GIGABYTE:.3g} GB, and the stage {stage.folder} may hold"
            f" {stage.most_bytes / GIGABYTE:.3g} GB; give a larger --stage-gb, or a folder with more room by"
            f" --stage or {CACHE_VARIABLE}."
        )
    with ExitStack() as resources:
        began = time.monotonic()
        try:
            room = resources.enter_context(room_on(stage, files.size, stop))
            room.mkdir(parents=True)
            fetch(files, room, stop)
        except OSError as error:
            raise ImageError(
                f"{url} cannot be fetched to {stage.folder} ({first_line(error)}); free some space, or name"
                f" another folder by --stage or {CACHE_VARIABLE}."
            ) from error
        copy = room / url.name
        if copy.is_file() and is_dicom(copy):
            raise _of_several(url, ".dcm")
        if copy.is_file() and names_others(copy):
            raise _of_several(url, "")
        took = f"{files.size / GIGABYTE:.3g} GB fetched in {time.monotonic() - began:.1f} s"
        _LOG.info("%s: %s", printable(str(url)), printable(took))
        with named_by_url({copy: url}):
            yield copy


@contextmanager
def local_image(image: Place) -> Iterator[Path]:
    """An image where it lies, or the copy of one on a server, for as long as it is used.

    Raises
    ------
    SlideError
        If it cannot be fetched.
    """
    if isinstance(image, Path):
        yield image
        return
    with fetched(image_files(image), default_stage()) as copy:
        yield copy


def default_stage() -> Stage:
    """Where slides of servers are fetched to if nobody says where: in the cache, half of what is free.

    Raises
    ------
    ImageError
        If that cannot be used.
    """
    try:
        return _stage_in(cache_folder() / "stage")
    except RequestError as error:
        raise ImageError(
            f"{str(error).rstrip('.')} (slides are fetched there; --stage names another)."
        ) from error


@cache
def _stage_in(folder: Path) -> Stage:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True, mode=0o700)
    found = stage_of(folder, None)
    assert found is not None
    return found
