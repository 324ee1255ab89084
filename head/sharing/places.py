"""Where a head lies: in the folder of a run, in a packed file, or on the Hugging Face hub."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmap_st.errors import HeadError, printable
from mmap_st.files import refuse_special
from mmap_st.head.runs import restore_run
from mmap_st.head.sharing.hub_head import PACKED, HubHead, fetch_first, fetch_further, hub_head
from mmap_st.head.sharing.unpacking import MANIFEST, MOST_BYTES, no_room, unpack

_LOG = logging.getLogger(__name__)


@contextmanager
def run_at(path: Path) -> Iterator[Path]:
    """Give the folder of a run; of a packed head or one on the hub, a private one that is removed in the end.

    Raises
    ------
    HeadError
        If `path` is a file and no packed head, or it is damaged; what is raised of the private folder
        meanwhile names `path` in its place.
    """
    on_hub = hub_head(path)
    if on_hub is None:
        refuse_special(path, HeadError)
    if on_hub is None and not path.is_file():
        restore_run(path)
        yield path
        return
    try:
        private = tempfile.TemporaryDirectory(prefix="mmap-head-")
    except OSError as error:
        raise no_room(error) from error
    with private as name:
        folder = Path(name)
        try:
            if on_hub is None:
                unpack(path, folder)
            else:
                _download(on_hub, folder)
            yield folder
        except HeadError as error:
            raise HeadError(str(error).replace(str(folder), printable(str(path)))) from error


def pinned(path: Path) -> Path:
    """The path, of a head on the hub with the commit that its revision stands for now, which is said."""
    on_hub = hub_head(path)
    if on_hub is None or on_hub.is_pinned:
        return path
    _, found = fetch_first(on_hub)
    _LOG.warning(
        "%s is the commit %s now; %s is always this one.",
        printable(str(on_hub)),
        printable(str(found.revision)),
        printable(str(found)),
    )
    return Path(str(found))


def _download(head: HubHead, folder: Path) -> None:
    """Put the files of a head on the hub into a private folder, all of one commit."""
    first, head = fetch_first(head)
    if first.name == PACKED:
        unpack(first, folder)
        return
    for name, most in MOST_BYTES.items():
        found = None if name == MANIFEST else fetch_further(head, name)
        if found is None:
            continue
        if most is not None and found.stat().st_size > most:
            raise HeadError(f"{head} has a {name} of {found.stat().st_size:,} bytes, which is too much.")
        try:
            shutil.copyfile(found, folder / name)
        except OSError as error:
            raise no_room(error) from error
