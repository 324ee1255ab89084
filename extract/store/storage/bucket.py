"""A store in a bucket of an object store, as Zarr sees it: read by URL, and published to slide by slide."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from zarr.abc.store import (
    ByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from mmap_st.errors import RequestError
from mmap_st.extract.store.storage.read_only import ReadOnlyStore, bounds_of
from mmap_st.object_stores import Bucket
from mmap_st.urls import Url

#: Of what was read, what is kept in memory: check sums of chunks are compared before the chunks are read.
_KEPT_BYTES = 256 << 20
#: Requests at a time: an answer takes a network some tens of milliseconds, and is a few hundred kilobytes.
AT_A_TIME = 16
_DESCRIPTION = "zarr.json"


class _Kept:
    """Objects that were read, the latest of them, up to a number of bytes; None is one that is not there."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._bytes = most_bytes, 0
        self._objects: OrderedDict[str, bytes | None] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, key: str) -> bool:
        return key in self._objects

    def get(self, key: str) -> bytes | None:
        """One that is kept.

        Raises
        ------
        KeyError
            If it is not, any more.
        """
        with self._lock:
            self._objects.move_to_end(key)
            return self._objects[key]

    def put(self, key: str, content: bytes | None) -> None:
        """Keep one, and let go of what was not asked for longest."""
        with self._lock:
            self._bytes += len(content or b"") - len(self._objects.pop(key, None) or b"")
            self._objects[key] = content
            while self._bytes > self._most:
                self._bytes -= len(self._objects.popitem(last=False)[1] or b"")

    def clear(self, below: str) -> None:
        """Keep nothing of a folder; "" is the whole store."""
        with self._lock:
            for key in [key for key in self._objects if _is_below(key, below)]:
                self._bytes -= len(self._objects.pop(key) or b"")


class StoreBucket(ReadOnlyStore):
    """Reads a store by its URL, many objects at a time; see `StoreFolder`.

    What was read is kept while the store is open, see `forget`: descriptions are asked for again and again.

    Attributes
    ----------
    root
        The URL.
    checked
        Arrays whose digests were compared since it was opened.
    """

    #: How the sentence on something damaged ends.
    advice = "; run `mmap extract` again, which repairs it, or restore it from a copy."

    def __init__(self, root: Url) -> None:
        super().__init__(read_only=True)
        self.root = root
        self.checked: set[str] = set()
        self.bucket = Bucket(root)
        self._kept = _Kept(_KEPT_BYTES)
        self._folders: dict[str, list[str]] = {}
        self._ends: dict[tuple[str, int], bytes | None] = {}

    def __reduce__(self) -> tuple[type[StoreBucket], tuple[Url]]:
        return type(self), (self.root,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoreBucket) and self.root == other.root

    def __str__(self) -> str:
        return str(self.root)

    def check(self, key: str) -> None:
        """Keys of an object store lead nowhere else."""

    def forget(self, below: str = "") -> None:
        """Ask anew for everything in a folder, or the whole store: others may have written meanwhile."""
        self._kept.clear(below)
        self._ends.clear()
        self._folders = {
            key: found for key, found in self._folders.items() if key and not _is_below(key, below)
        }
        self.checked = {key for key in self.checked if not _is_below(key, below)}

    def bytes_of(self, key: str, last: int | None = None) -> bytes | None:
        """An object, or its last bytes; None where there is none.

        Raises
        ------
        RemoteError
            If the server does not give it.
        """
        if last is not None and (key, last) in self._ends:
            return self._ends.pop((key, last))
        content = self._whole(key)
        return content if content is None or last is None else content[-last:]

    def _whole(self, key: str) -> bytes | None:
        try:
            return self._kept.get(key)
        except KeyError:
            content = self.bucket.get(key)
            self._kept.put(key, content)
            return content

    def read_ahead(self, keys: Iterable[str]) -> None:
        """Read objects side by side that are asked for next."""
        _side_by_side(self._whole, [key for key in keys if key not in self._kept])

    def read_ends(self, folder: str, keys: Sequence[str], last: int | None) -> None:
        """The same of all objects in a folder whose last bytes are asked for, and then perhaps the objects.

        They are read whole, once, where all of them can be kept until then.
        """
        sizes = self.sizes(folder)
        for key in keys:
            if key not in sizes:
                self._kept.put(key, None)
        there = [key for key in keys if key in sizes]
        if last is None or sum(sizes[key] for key in there) <= _KEPT_BYTES // 2:
            self.read_ahead(there)
            return

        def read_end(key: str) -> None:
            self._ends[key, last] = self.bucket.get(key, max(sizes[key] - last, 0), sizes[key])

        _side_by_side(read_end, there)

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every object below a folder, by its key; asked for anew."""
        return dict(self.bucket.keys(folder))

    def folders_in(self, key: str) -> list[str]:
        """Names of the folders in a folder; in a slide's, all that describes something is read with them."""
        if key and key not in self._folders:
            self._look_into(key.partition("/")[0])
        elif key not in self._folders:
            self._folders[key] = self.bucket.folders(key)
        return sorted(self._folders.get(key, ()))

    def _look_into(self, slide: str) -> None:
        """List all of a slide, and read what describes its groups and arrays, side by side."""
        keys = list(self.sizes(slide))
        self._folders[slide] = []
        for key in keys:
            parts = key.split("/")
            for depth in range(1, len(parts) - 1):
                inside = self._folders.setdefault("/".join(parts[:depth]), [])
                if parts[depth] not in inside:
                    inside.append(parts[depth])
        self.read_ahead(key for key in keys if key.endswith(f"/{_DESCRIPTION}"))

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        content = self._whole(key)
        if content is None:
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(
            content[slice(*bounds_of(byte_range, len(content)))]
        )

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self._whole, key) is not None

    def refusal(self) -> RequestError:
        return read_by_url(self.root)

    async def list(self) -> AsyncIterator[str]:
        for key in self.sizes(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self.sizes(prefix.rstrip("/")):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in self.folders_in(prefix.strip("/")):
            yield name


def read_by_url(url: Url) -> RequestError:
    """The error for what would write to a store in a bucket by another way than publishing slides."""
    return RequestError(
        f"{url} is in an object store, where only `mmap extract` writes; copy it to a disk, and name"
        " the copy."
    )


def _is_below(key: str, folder: str) -> bool:
    return not folder or key == folder or key.startswith(f"{folder}/")


def _side_by_side(read: Callable[[str], object], keys: Sequence[str]) -> None:
    if len(keys) <= 1:
        return  # whoever asks reads it
    with ThreadPoolExecutor(min(AT_A_TIME, len(keys))) as readers:
        for _ in readers.map(read, keys):
            pass
