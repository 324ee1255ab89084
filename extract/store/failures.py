"""Slides that could not be embedded: noted next to a store, so that every job and every machine can tell."""

from __future__ import annotations

import json
import logging
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mmap_st.errors import StoreError, printable
from mmap_st.extract.store.folder import check_plain
from mmap_st.extract.store.reader import locks_folder
from mmap_st.extract.store.recipe import encode_name
from mmap_st.files import file_name, write_text

#: How the names of these notes end.
FAILED = ".failed.json"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """Why a slide could not be embedded, on which machine, and when (seconds of the Unix epoch)."""

    reason: str
    host: str
    at: float


def note_failure(store: Path, slide: str, encoder: str, reason: str) -> None:
    """Note that a slide failed; where that cannot be written, it is not worth a word of its own."""
    try:
        path = _path(store, slide, encoder)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(Failure(reason, platform.node(), time.time()))), sync=False)
    except (OSError, StoreError) as error:
        _LOG.info("the failure of %s is not noted: %s", printable(slide), error)


def forget_failure(store: Path, slide: str, encoder: str) -> None:
    """The slide did not fail this time."""
    with suppress(OSError, StoreError):
        _path(store, slide, encoder).unlink(missing_ok=True)


def failure_of(store: Path, slide: str, encoder: str) -> Failure | None:
    """Why a slide failed when it was last tried; None where it did not."""
    try:
        return Failure(**json.loads(_path(store, slide, encoder).read_text("utf-8")))
    except (OSError, StoreError, ValueError, TypeError):
        return None


def _path(store: Path, slide: str, encoder: str) -> Path:
    folder, name = (
        locks_folder(store),
        file_name(f"{encode_name(slide)} {encode_name(encoder)}", FAILED),
    )
    check_plain(folder, name)
    return folder / name
