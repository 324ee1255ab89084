"""One writer a slide: an OS file lock, which ends with the process that holds it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mmap_st.errors import SlideLockedError, StoreError


@contextmanager
def slide_lock(store: Path, slide_key: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of one slide of a store.

    Lock files lie beside the store, in ``STORE.locks/``, so that the store holds nothing but Zarr. They
    stay there: what locks is the operating system, never the existence of a file.

    Parameters
    ----------
    store
        Folder of the store.
    slide_key
        The slide's folder name in the store.
    wait_s
        How long to wait for another writer.

    Raises
    ------
    SlideLockedError
        If another process still holds the lock; it names that process.
    """
    folder = store.resolve().with_name(store.resolve().name + ".locks")
    holder = folder / f"{slide_key}.holder.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(folder / f"{slide_key}.lock"), timeout=wait_s)
        lock.acquire()
        holder.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}))
    except Timeout as error:
        raise SlideLockedError(
            f"{_describe(holder)} is writing it; wait for that to end and run the same command again."
        ) from error
    except OSError as error:
        raise StoreError(f"{folder} cannot be written ({error}); choose a store you may write to.") from error
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _describe(holder: Path) -> str:
    try:
        who = json.loads(holder.read_text())
        return f"another process ({who['pid']} on {who['host']})"
    except (OSError, ValueError, KeyError):
        return "another process"
