"""What stores that are read and never written through Zarr have in common: packed ones, and those by URL."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Iterable

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from mmap_st.errors import MmapError


class ReadOnlyStore(Store):
    """A store of Zarr whose reading blocks, in any number of threads."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    @abstractmethod
    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """A file, or a part of one; None where there is none."""

    @abstractmethod
    def refusal(self) -> MmapError:
        """What whoever would write is told."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        return await asyncio.to_thread(self.get_sync, key, prototype=prototype, byte_range=byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def set(self, key: str, value: Buffer) -> None:
        raise self.refusal()

    async def delete(self, key: str) -> None:
        raise self.refusal()


def bounds_of(part: ByteRequest | None, size: int) -> tuple[int, int]:
    """First byte, and the one behind the last, of a part of a file of `size` bytes."""
    if isinstance(part, RangeByteRequest):
        return min(part.start, size), min(max(part.start, part.end), size)
    if isinstance(part, OffsetByteRequest):
        return min(part.offset, size), size
    if isinstance(part, SuffixByteRequest):
        return max(size - part.suffix, 0), size
    return 0, size
