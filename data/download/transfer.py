"""One file over HTTP: what arrived lies in a ``.part`` file, from which the next attempt or run goes on."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests import Response
from urllib3.exceptions import HTTPError as StreamError
from urllib3.exceptions import ReadTimeoutError

import mmap_st
from mmap_st.errors import DownloadError

_CHUNK = 1 << 16
_LONGEST_WAIT_S = 60.0
_MISSING = (404, 410)
_LATER = (408, 425, 429, 500, 502, 503, 504)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

Moved = Callable[[int, "int | None"], None]


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, in seconds, and how often to ask.

    Attributes
    ----------
    connect_s, read_s
        For a connection; for the next bytes.
    attempts
        Failures in a row, without a new byte between them, after which a file is given up.
    wait_s
        Before the second attempt; it doubles from one to the next.
    """

    connect_s: float = 15.0
    read_s: float = 60.0
    attempts: int = 5
    wait_s: float = 1.0


class NoAnswerError(DownloadError):
    """The server cannot be reached or sends nothing."""


class DiskFullError(DownloadError):
    """There is no room for the file."""


class _AgainError(Exception):
    """An attempt failed in a way that another may not."""

    def __init__(self, reason: str, *, answered: bool = True, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.answered = answered
        self.wait_s = wait_s


class Transfer:
    """Fetches files one after the other over one connection; proxies are those of the environment."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"mmap-st/{mmap_st.__version__}"

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, *error: object) -> None:
        self._session.close()

    def fetch(self, url: str, part: Path, moved: Moved) -> bool:
        """Fetch `url` into `part` until it is whole.

        Parameters
        ----------
        url
            Address of the file.
        part
            Where it is put. What an earlier run left there is gone on from, if the server still has the
            same file and sends pieces of it.
        moved
            Told, after each piece, how many bytes are here, and of how many if the server says it.

        Returns
        -------
        bool
            Whether what an earlier run or attempt left is in it.

        Raises
        ------
        DownloadError
            If it cannot be had; `part` then keeps what arrived.
        """
        most, failures, headway = _size(part), 0, False
        while True:
            try:
                with writing(part):
                    return self._attempt(url, part, moved)
            except _AgainError as failure:
                here = _size(part)
                # Only more than ever counts as headway: a server that breaks off at the same place,
                # and begins anew each time, would else be asked forever.
                failures = 1 if here > most else failures + 1
                most, headway = max(most, here), headway or here > most
                if failures >= self._patience.attempts:
                    text = f"{url} {failure} ({failures} attempts)"
                    if failure.answered or headway:
                        raise DownloadError(f"{text}; run the same command again later.") from failure
                    raise NoAnswerError(f"{text}; look to the network and its proxy.") from failure
                time.sleep(max(failure.wait_s, self._patience.wait_s * 2 ** (failures - 1)))

    def _attempt(self, url: str, part: Path, moved: Moved) -> bool:
        here, validator = _resume_point(part)
        # Compressed on the way, a file's length and its pieces would be those of something else.
        headers = {"Accept-Encoding": "identity"}
        if validator:
            headers |= {"Range": f"bytes={here}-", "If-Range": validator}
        timeout = (self._patience.connect_s, self._patience.read_s)
        try:
            with self._session.get(url, headers=headers, stream=True, timeout=timeout) as response:
                start, total = _understand(response, url, part, here)
                resumed = start > 0
                if not resumed:
                    part.write_bytes(b"")
                    _note_validator(part, response)
                moved(start, total)
                with part.open("ab") as file:
                    # read1 gives what has come: read would wait for a full piece, and lose it to a stall.
                    while chunk := response.raw.read1(_CHUNK, decode_content=False):
                        file.write(chunk)
                        start += len(chunk)
                        moved(start, total)
        except requests.exceptions.SSLError as error:
            raise DownloadError(f"{url} has no certificate to be trusted ({error}).") from error
        except requests.exceptions.ProxyError as error:
            raise _AgainError("cannot be reached through the proxy", answered=False) from error
        except requests.exceptions.ReadTimeout as error:
            raise _AgainError(self._silence(), answered=False) from error
        except (requests.exceptions.ConnectionError, requests.exceptions.ConnectTimeout) as error:
            raise _AgainError("cannot be reached", answered=False) from error
        except requests.exceptions.RequestException as error:
            raise DownloadError(f"{url} cannot be fetched: {error}.") from error
        except ReadTimeoutError as error:
            raise _AgainError(self._silence(), answered=False) from error
        except StreamError as error:
            raise _AgainError(f"broke off after {_size(part)} bytes") from error
        if total is not None and start != total:
            raise _AgainError(f"broke off after {start} of {total} bytes")
        return resumed

    def _silence(self) -> str:
        return f"sent nothing for {self._patience.read_s:g} s"


def discard(part: Path) -> None:
    """Remove a ``.part`` file and what is noted of it."""
    part.unlink(missing_ok=True)
    _validator_file(part).unlink(missing_ok=True)


def publish(part: Path, path: Path) -> None:
    """Make a whole ``.part`` file the file itself, in one step."""
    part.replace(path)
    _validator_file(part).unlink(missing_ok=True)


def _understand(response: Response, url: str, part: Path, here: int) -> tuple[int, int | None]:
    """From which byte on the answer goes, and how long the whole file is."""
    status = response.status_code
    if status == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != here:
            discard(part)
            raise _AgainError("sent another piece than was asked for")
        return here, int(match[2]) if match[2] != "*" else None
    if status == 416:  # nothing lies behind what is here, so that is not the beginning of this file
        discard(part)
        raise _AgainError("has no such piece")
    if status in _LATER:
        raise _AgainError(f"cannot be had now (HTTP {status})", wait_s=_asked_to_wait(response))
    if status in _MISSING:
        raise DownloadError(
            f"{url} is not there (HTTP {status}); see whether the data set has moved,"
            " or name a copy of it with --mirror."
        )
    if status != 200:
        raise DownloadError(f"{url} is refused (HTTP {status} {response.reason}).")
    encoding = response.headers.get("Content-Encoding", "identity")
    # A .gz file that is announced as "encoded" is the file itself: some servers know no better.
    if encoding != "identity" and not urlsplit(url).path.endswith(".gz"):
        raise DownloadError(f"{url} is sent compressed ({encoding}), which was not asked for.")
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _asked_to_wait(response: Response) -> float:
    text = response.headers.get("Retry-After", "")
    return min(float(text), _LONGEST_WAIT_S) if text.isdecimal() else 0.0


def _resume_point(part: Path) -> tuple[int, str | None]:
    """Bytes that are here, and what the server must still call the file for them to be of use."""
    here = _size(part)
    try:
        validator = _validator_file(part).read_text("utf-8")
    except FileNotFoundError:
        validator = ""
    return (here, validator) if here and validator else (0, None)


def _note_validator(part: Path, response: Response) -> None:
    tag = response.headers.get("ETag", "")
    # A weak tag names files that are alike, not the same bytes: If-Range does not take it.
    name = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")
    _validator_file(part).write_text(name, "utf-8")


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence why `path` cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"the disk of {path.parent} is full; make room, and the same command goes on from there."
            ) from error
        raise DownloadError(
            f"{path} cannot be written ({error.strerror or error}); see who may write there."
        ) from error
