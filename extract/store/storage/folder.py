"""The folder of a store, as Zarr sees it: plain files and folders, and nothing that leads out of it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from mmap_st.errors import LinkInStoreError

# What zarr calls the draft of a file until it is whole.
_DRAFT = re.compile(r".+\.[0-9a-f]{32}\.partial")


def check_plain(root: Path, key: str) -> None:
    """Refuse a path below a folder that does not lead by plain folders to a plain file or folder.

    Parameters
    ----------
    root
        The folder; it may be a link itself.
    key
        The path below it, with ``/``. What does not exist is fine.

    Raises
    ------
    LinkInStoreError
        Naming what is a link, or neither a file nor a folder.
    """
    path = str(root)
    for part in key.split("/") if key else ():
        path = f"{path}/{part}"
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            what = "a link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
            raise LinkInStoreError(
                f"{path} is {what}, which is not followed inside a store",
                "; put a copy in its place, or remove it and extract again.",
            )


class StoreFolder(LocalStore):
    """Reads and writes below a folder, and refuses links there, devices and pipes.

    A store may come from anybody. A link in it would have this program read, overwrite or remove files that
    are not the store's; a pipe would never end. The store's own path may be a link: that is the user's.

    Attributes
    ----------
    checked
        Arrays whose digests were compared since it was opened.
    """

    #: How the sentence on something damaged ends.
    advice = "; run `mmap extract` (or `mmap import`) again, which repairs it, or restore it from a copy."

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self.checked: set[str] = set()

    def check(self, key: str) -> None:
        """Refuse a key that does not lead by plain folders to a plain file or folder; see `check_plain`."""
        check_plain(self.root, key)

    def bytes_of(self, key: str, last: int | None = None) -> bytes | None:
        """A file, or its last bytes; None where there is none.

        Raises
        ------
        StoreError
            If it is a link, or neither a file nor a folder.
        OSError
            If it cannot be read.
        """
        self.check(key)
        try:
            with open(f"{self.root}/{key}", "rb") as file:
                if last is not None:
                    file.seek(0, os.SEEK_END)
                    file.seek(max(file.tell() - last, 0))
                return file.read()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def folders_in(self, key: str) -> list[str]:
        """Names of the folders in a folder.

        Raises
        ------
        StoreError
            If one of them is a link.
        """
        self.check(key)
        try:
            with os.scandir(f"{self.root}/{key}") as entries:
                found = [entry.name for entry in entries if not entry.is_file(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return found

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self.check(key)
        return await super().get(key, prototype, byte_range)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        self.check(key)
        return super().get_sync(key, prototype=prototype, byte_range=byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        wanted = list(key_ranges)
        for key, _ in wanted:
            self.check(key)
        return await super().get_partial_values(prototype, wanted)

    async def set(self, key: str, value: Buffer) -> None:
        self.check(key)
        await super().set(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        self.check(key)
        super().set_sync(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        self.check(key)
        await super().set_if_not_exists(key, value)

    async def delete(self, key: str) -> None:
        self.check(key)
        await super().delete(key)

    def delete_sync(self, key: str) -> None:
        self.check(key)
        super().delete_sync(key)

    async def delete_dir(self, prefix: str) -> None:
        self.check(prefix.rstrip("/"))
        await super().delete_dir(prefix)

    async def exists(self, key: str) -> bool:
        self.check(key)
        return await super().exists(key)

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        self.check(prefix.strip("/"))
        return super().list_dir(prefix)


def is_draft(file: Path) -> bool:
    """Whether this is what zarr left of a file when it was killed, by its name and by being a plain file.

    One that is gone by now was a draft too: its writer, still at work, has given it the file's own name.
    """
    if _DRAFT.fullmatch(file.name) is None:
        return False
    try:
        return stat.S_ISREG(os.lstat(file).st_mode)
    except FileNotFoundError:
        return True


def drafts_in(folder: Path) -> Iterator[Path]:
    """Drafts in a folder, not in those below."""
    if folder.is_dir():
        yield from (file for file in folder.iterdir() if is_draft(file))


def drafts_below(folder: Path) -> Iterator[Path]:
    """Drafts in a folder and below, never by way of a link."""
    if folder.is_symlink():
        return
    for place, _, names in os.walk(folder):
        yield from (file for file in (Path(place, name) for name in names) if is_draft(file))
