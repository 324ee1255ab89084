"""Whether a file is what it should be: by a hash where one is known, else by whether it opens."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

import pooch

from mmap_st.data.download.datasets import RemoteFile
from mmap_st.errors import DownloadError

_PAGE = "it may be the page of a proxy or a login"


def check(path: Path, file: RemoteFile, recorded: str | None = None) -> str:
    """Compare a whole file with what is known about it, and return its SHA-256.

    Parameters
    ----------
    path
        The file on disk; it may have a temporary name.
    file
        What it should be.
    recorded
        SHA-256 that it had when it was fetched before.

    Raises
    ------
    DownloadError
        If it is a different file, or does not open as one of its kind.
    """
    sha256 = str(pooch.file_hash(path, alg="sha256"))
    if file.sha256 is not None:
        _compare("SHA-256", sha256, file.sha256, "this is not the file that is known by this name")
        return sha256
    if recorded is not None:
        meaning = "the file has changed since; delete its line in SHA256SUMS to accept it"
        _compare("SHA-256", sha256, recorded, meaning)
    data = path.read_bytes()
    if file.git_sha1 is not None:
        git_sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        _compare("git SHA-1", git_sha1, file.git_sha1, "the server's own list of files names another")
    suffix = Path(file.path).suffix.lower()
    if suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DownloadError(f"it is not a whole gzip file ({error}); {_PAGE}.") from error
    if file.content_sha256 is not None:
        content = hashlib.sha256(data).hexdigest()
        _compare("SHA-256 of its content", content, file.content_sha256, "this is not the known table")
    if suffix in (".jpg", ".jpeg") and not data.startswith(b"\xff\xd8\xff"):
        raise DownloadError(f"it is not a JPEG; {_PAGE}.")
    if suffix in (".jpg", ".jpeg") and b"\xff\xd9" not in data[-1024:]:  # some programs add a few bytes
        raise DownloadError("it is a JPEG without an end.")
    header = data[: data.find(b"\n")]
    if suffix in (".gz", ".tsv") and (b"\t" not in header or header.lstrip().startswith(b"<")):
        raise DownloadError(f"it is not a tab-separated table; {_PAGE}.")
    return sha256


def _compare(what: str, found: str, expected: str, meaning: str) -> None:
    if found != expected:
        raise DownloadError(f"its {what} is {found}, not {expected}: {meaning}.")
