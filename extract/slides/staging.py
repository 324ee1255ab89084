"""Slides on local disk while they are embedded: on network drives, many small reads are what takes the time.

A stage is a folder that any number of processes of one machine share. Each slide in it has a folder of its
own, with a lock that ends with its process: what a process that was killed left is removed by the next one.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mmap_st.errors import ImageError, RequestError, StoppedError, first_line, printable
from mmap_st.extract.slides.slide import slide_files
from mmap_st.files import (
    InUseError,
    check_folder_out,
    file_lock,
    is_dicom,
    os_lock,
    writing,
)

_LOG = logging.getLogger(__name__)
_GUARD, _PREFIX, _LOCK = "mmap-stage.lock", "mmap-staged-", ".lock"
_POLL_S = 0.2
_COPIED_AT_A_TIME = 8 << 20
GIGABYTE = 1e9
#: Formats whose slides are in several files that name each other; of MRXS it is known which they are.
_IN_SEVERAL_FILES = (".vms", ".vmu", ".dcm")


@dataclass(frozen=True)
class Stage:
    """Where slides are copied to, and how much of them may lie there at a time.

    Attributes
    ----------
    folder
        On a local disk; made where there is none.
    most_bytes
        Of all slides of all processes together. A larger slide is read where it lies.
    """

    folder: Path
    most_bytes: int


@contextmanager
def staged(image: Path, stage: Stage, stop: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """A slide's copy on the stage, for as long as it is used; or the slide itself, where it cannot be there.

    Waits until there is room. A file that may need others beside it (of DICOM, VMS, an OME-TIFF in several
    files) is read where it lies, and so is a slide that is larger than the stage, or finds its disk full.

    Parameters
    ----------
    image
        A file or folder, as `open_slide` takes it.
    stop
        Asked while waiting and copying; True ends it.

    Raises
    ------
    ImageError
        If the slide cannot be read; and errors of this kind that are raised within name the slide, not its
        copy.
    StoppedError
        If `stop` requests it.
    """
    parts = _parts(image)
    size = sum(file.stat().st_size for part in parts for file in slide_files(part))
    if not parts or size > stage.most_bytes:
        reason = (
            "of its format, files beside it may be needed" if not parts else "it is larger than the stage"
        )
        _LOG.info("%s is read where it lies: %s", printable(str(image)), reason)
        yield image
        return
    with ExitStack() as resources:
        began = time.monotonic()
        try:
            room = resources.enter_context(room_on(stage, size, stop))
            for part in parts:
                _copy(part, room / part.name, stop)
        except (_StageFullError, OSError) as error:
            _LOG.warning(
                "%s is read where it lies: --stage %s cannot take it (%s); give a smaller --stage-gb.",
                printable(str(image)),
                printable(str(stage.folder)),
                first_line(error),
            )
            resources.close()
            yield image
            return
        took = f"{size / GIGABYTE:.3g} GB staged in {time.monotonic() - began:.1f} s"
        _LOG.info("%s: %s", printable(str(image)), printable(took))
        copy = room / image.name
        try:
            yield copy
        except ImageError as error:
            raise type(error)(str(error).replace(str(copy), str(image))) from error


class _StageFullError(Exception):
    """The stage's disk takes no more."""


def _parts(image: Path) -> Sequence[Path]:
    """The files and folders that a slide consists of, all in one folder; nothing where that is not known."""
    if image.is_dir():
        return (image,)
    suffix = image.suffix.lower()
    if suffix == ".mrxs":
        return (image, image.with_suffix("")) if image.with_suffix("").is_dir() else ()
    if suffix in _IN_SEVERAL_FILES or not image.is_file() or is_dicom(image) or names_others(image):
        return ()
    return (image,)


def names_others(image: Path) -> bool:
    """Whether it is an OME-TIFF whose planes are in several files."""
    if not image.name.lower().endswith((".tif", ".tiff", ".btf")):
        return False
    import tifffile

    try:
        with tifffile.TiffFile(image) as file:
            text = file.ome_metadata or ""
    except (OSError, ValueError, tifffile.TiffFileError):
        return False  # whoever opens it says what is wrong with it
    return len(set(re.findall(r'FileName\s*=\s*"([^"]*)"', text))) > 1


@contextmanager
def room_on(stage: Stage, size: int, stop: Callable[[], bool]) -> Iterator[Path]:
    """A folder of one's own on the stage that may take so many bytes, once there is room for them."""
    name = f"{_PREFIX}{uuid.uuid4().hex}-{size}"
    room, lock = stage.folder / name, os_lock(stage.folder / f"{name}{_LOCK}")
    while True:
        with _guarded(stage):
            if sum(_taken(stage)) + size <= stage.most_bytes:
                lock.acquire(timeout=0)
                break
        if stop():
            raise StoppedError("stopped while waiting for room on the stage")
        time.sleep(_POLL_S)
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)
        with _guarded(stage):
            lock.release()
            with suppress(OSError):
                (stage.folder / f"{name}{_LOCK}").unlink()


@contextmanager
def _guarded(stage: Stage) -> Iterator[None]:
    """Nobody else looks who is on the stage, comes or goes meanwhile."""
    stage.folder.mkdir(parents=True, exist_ok=True)  # another machine of a cluster has none yet
    with file_lock(stage.folder / _GUARD, wait_s=None):
        yield


def _taken(stage: Stage) -> Iterator[int]:
    """Bytes of each slide that is on the stage; what dead processes left is removed."""
    for lock in sorted(stage.folder.glob(f"{_PREFIX}*{_LOCK}")):
        room = lock.with_name(lock.name.removesuffix(_LOCK))
        try:
            with file_lock(lock):
                shutil.rmtree(room, ignore_errors=True)
                lock.unlink(missing_ok=True)
        except InUseError:
            yield int(room.name.rpartition("-")[2])


def _copy(source: Path, target: Path, stop: Callable[[], bool]) -> None:
    """Copy a file, or a folder with what is in it.

    Raises
    ------
    ImageError
        If the source cannot be read.
    _StageFullError
        If the target cannot be written.
    """
    for file in slide_files(source):
        place = target if file == source else target / file.relative_to(source)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            written = place.open("wb", buffering=0)
        except OSError as error:
            raise _StageFullError(str(error)) from error
        with written:
            for piece in _pieces(file):
                if stop():
                    raise StoppedError("stopped while a slide was staged")
                left = memoryview(piece)
                try:
                    while left:
                        left = left[written.write(left) :]
                except OSError as error:
                    raise _StageFullError(str(error)) from error


def _pieces(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as opened:
            while piece := opened.read(_COPIED_AT_A_TIME):
                yield piece
    except OSError as error:
        raise ImageError(
            f"{file} cannot be read ({first_line(error)}); check the disk it lies on."
        ) from error


def stage_of(folder: str | Path | None, gigabytes: float | None) -> Stage | None:
    """The stage that ``--stage`` and ``--stage-gb`` ask for; None where none is.

    Parameters
    ----------
    gigabytes
        None: half of what is free on its disk.

    Raises
    ------
    RequestError
        If it cannot be used.
    """
    if folder is None:
        if gigabytes is not None:
            raise RequestError("--stage-gb says how much --stage may hold; give --stage DIR too.")
        return None
    path = Path(folder)
    if gigabytes is not None and not 0 < gigabytes < float("inf"):
        raise RequestError(f"--stage-gb {gigabytes:g}: give gigabytes, such as 50.")
    check_folder_out(path, "--stage")
    with writing(path, "--stage"):
        path.mkdir(parents=True, exist_ok=True)
        with file_lock(path / _GUARD, wait_s=None) as held:
            if not held:
                raise RequestError(f"--stage {path} has no file locks; name a folder on a local disk.")
        most = shutil.disk_usage(path).free / 2 if gigabytes is None else gigabytes * GIGABYTE
    return Stage(path, int(most))
