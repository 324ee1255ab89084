"""Slides that could not be embedded: noted next to a store, so that every job and every machine can tell."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mmap_st.errors import StoreError, printable
from mmap_st.extract.store.reader import locks_folder
from mmap_st.extract.store.recipe import encode_name
from mmap_st.extract.store.storage import check_plain
from mmap_st.extract.store.writing.lease import leases_of
from mmap_st.files import file_name, write_text
from mmap_st.object_stores import Bucket
from mmap_st.urls import Place, Url

#: How the names of these notes end.
FAILED = ".failed.json"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """Why a slide could not be embedded, on which machine, and when (seconds of the Unix epoch)."""

    reason: str
    host: str
    at: float


def note_failure(store: Place, slide: str, encoder: str, reason: str) -> None:
    """Note that a slide failed; where that cannot be written, it is not worth a word of its own."""
    note = json.dumps(asdict(Failure(reason, platform.node(), time.time())))
    try:
        if isinstance(store, Url):
            Bucket(leases_of(store)).put(_name(slide, encoder), note.encode())
            return
        path = _path(store, slide, encoder)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, note, sync=False)
    except (OSError, StoreError) as error:
        _LOG.info("the failure of %s is not noted: %s", printable(slide), error)


def forget_failures(store: Place, slides: Sequence[str], encoder: str) -> None:
    """These slides did not fail this time."""
    if isinstance(store, Url):
        with suppress(StoreError):
            Bucket(leases_of(store)).delete([_name(slide, encoder) for slide in slides])
        return
    for slide in slides:
        _forget(store, slide, encoder)


def _forget(store: Path, slide: str, encoder: str) -> None:
    with suppress(OSError, StoreError):
        _path(store, slide, encoder).unlink(missing_ok=True)


def failure_of(store: Place, slide: str, encoder: str) -> Failure | None:
    """Why a slide failed when it was last tried; None where it did not."""
    try:
        if isinstance(store, Url):
            note = Bucket(leases_of(store)).get(_name(slide, encoder))
            return None if note is None else Failure(**json.loads(note))
        return Failure(**json.loads(_path(store, slide, encoder).read_text("utf-8")))
    except (OSError, StoreError, ValueError, TypeError):
        return None


def _path(store: Path, slide: str, encoder: str) -> Path:
    folder, name = locks_folder(store), _name(slide, encoder)
    check_plain(folder, name)
    return folder / name


def _name(slide: str, encoder: str) -> str:
    return file_name(f"{encode_name(slide)} {encode_name(encoder)}", FAILED)
