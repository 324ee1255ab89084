"""Is a file what it should be: by its hash where one is known, else by how it opens."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

from mmap_st.data.download.datasets import RemoteFile
from mmap_st.data.download.folder import SUMS
from mmap_st.errors import DownloadError

_CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, file: RemoteFile, recorded: str | None) -> str:
    """Hold a whole file against what is known of it.

    Parameters
    ----------
    path
        Where it lies.
    file
        What it should be.
    recorded
        SHA-256 that it had when it was fetched before.

    Returns
    -------
    str
        Its SHA-256.

    Raises
    ------
    DownloadError
        If it is another file than that, or does not open as one.
    """
    if path.stat().st_size == 0:
        raise DownloadError("it is empty; the server may not have the file itself.")
    got = sha256_of(path)
    if file.sha256 is not None:
        _same("SHA-256", got, file.sha256, "this is not the file that is known by this name")
        return got
    if recorded is not None:
        _same(
            "SHA-256", got, recorded, f"the file was changed since; take its line out of {SUMS} to accept it"
        )
    if file.git_sha1 is not None:
        _same("git SHA-1", _git_sha1(path), file.git_sha1, "the server's own list of files names another")
    suffix = Path(file.path).suffix.lower()
    if suffix == ".gz":
        content = _check_gzip(path)
        if file.content_sha256 is not None:
            _same(
                "SHA-256 of its content", content, file.content_sha256, "this is not the table that is known"
            )
    elif suffix in (".jpg", ".jpeg"):
        _check_jpeg(path)
    elif suffix == ".tsv":
        with path.open("rb") as opened:
            _check_table(opened.read(_CHUNK))
    return got


def _same(what: str, got: str, expected: str, meaning: str) -> None:
    if got != expected:
        raise DownloadError(f"its {what} is {got}, not {expected}: {meaning}.")


def _git_sha1(path: Path) -> str:
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _check_gzip(path: Path) -> str:
    """SHA-256 of what a gzipped table holds; its CRC is compared on the way."""
    digest, begun = hashlib.sha256(), False
    unpack = zlib.decompressobj(wbits=31)
    try:
        for chunk in _chunks(path):
            rest = chunk
            while rest:
                if unpack.eof:  # a file may hold several gzipped pieces, one after the other
                    unpack = zlib.decompressobj(wbits=31)
                content = unpack.decompress(rest)
                if content and not begun:
                    _check_table(content[:_CHUNK])
                    begun = True
                digest.update(content)
                rest = unpack.unused_data
    except zlib.error as error:
        raise DownloadError(f"it is no whole gzip file ({error}).") from error
    if not unpack.eof:
        raise DownloadError("it is no whole gzip file (it ends too early).")
    return digest.hexdigest()


def _check_table(start: bytes) -> None:
    line = start.split(b"\n", 1)[0]
    if b"\t" not in line or line.lstrip().startswith(b"<"):
        raise DownloadError(
            "it is no tab-separated table; a page of a proxy or a login may stand in its place."
        )


def _check_jpeg(path: Path) -> None:
    with path.open("rb") as file:
        begins = file.read(3)
        file.seek(max(0, path.stat().st_size - 1024))
        ends = file.read()
    if begins != b"\xff\xd8\xff":
        raise DownloadError("it is no JPEG; a page of a proxy or a login may stand in its place.")
    if b"\xff\xd9" not in ends:  # some programs add a few bytes after the mark
        raise DownloadError("it is a JPEG without an end.")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
