"""Files of the web: fetched, and checked by a hash where one is known, else by whether they open."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

import pooch
from requests import exceptions

import mmap_st
from mmap_st.data.download.datasets import DownloadReport, RemoteFile, disk_sentence, is_disk_full
from mmap_st.errors import DownloadError, first_line
from mmap_st.progress import Progress

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
            raise DownloadError(f"it is not a whole gzip file ({first_line(error)}); {_PAGE}.") from error
    if file.content_sha256 is not None:
        content = hashlib.sha256(data).hexdigest()
        _compare("SHA-256 of its content", content, file.content_sha256, "this is not the known table")
    if suffix in (".jpg", ".jpeg") and not data.startswith(b"\xff\xd8\xff"):
        raise DownloadError(f"it is not a JPEG; {_PAGE}.")
    if suffix in (".jpg", ".jpeg") and b"\xff\xd9" not in data[-1024:]:  # some programs add a few bytes
        raise DownloadError("it is a truncated JPEG.")
    header = data[: data.find(b"\n")]
    if suffix in (".gz", ".tsv") and (b"\t" not in header or header.lstrip().startswith(b"<")):
        raise DownloadError(f"it is not a tab-separated table; {_PAGE}.")
    return sha256


def _compare(what: str, found: str, expected: str, meaning: str) -> None:
    if found != expected:
        raise DownloadError(f"its {what} is {found}, not {expected}: {meaning}.")


# For a connection, and for the next bytes.
_TIMEOUT_S = (15.0, 60.0)
_RETRIES = 4
_WORTH_A_RETRY = (408, 425, 429, 500, 502, 503, 504)
_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_IMAGE = re.compile(r"[^./\\][^/\\]*\.(jpe?g|png|tiff?)", re.IGNORECASE)


def fetch_files(
    files: Iterable[RemoteFile],
    unnamed: Sequence[str],
    base: str,
    listing: str | None,
    out: Path,
    report: DownloadReport,
    progress: Progress,
) -> None:
    """Fetch what is not there yet; a file that cannot be had does not stop the others.

    Parameters
    ----------
    files
        Files whose names are known.
    unnamed
        Sections of her2st whose image is wanted, and has a name that only `listing` knows.
    base, listing
        Address that paths are added to, and address of the list of files.
    out
        Folder to write.
    report, progress
        Told what becomes of each file.
    """
    pooch.get_logger().setLevel("WARNING")  # the progress shows what pooch would log
    sums = _read_sums(out)
    images = _find_images(unnamed, listing, sums, report) if listing is not None else []
    missing = [file for file in (*files, *images) if not _is_there(out, file, sums, report)]
    bar = _Bar(progress, missing)
    untried = None
    for file in missing:
        if untried is not None:
            report.failed[file.path] = untried
            continue
        bar.start(file)
        try:
            _fetch(file, base + quote(file.path), out / file.path, sums.get(file.path), bar)
        except DownloadError as error:
            report.failed[file.path] = str(error)
            if isinstance(error.__cause__, exceptions.ConnectionError):
                untried = f"was not tried, since {urlsplit(base).netloc} does not answer."
            elif is_disk_full(error.__cause__):
                untried = "was not tried, since the disk is full."
        else:
            report.fetched.append(file.path)
            report.received += (out / file.path).stat().st_size
            _record(out, file.path, pooch.file_hash(out / file.path), sums)


def _fetch(
    file: RemoteFile, url: str, path: Path, recorded: str | None = None, bar: _Bar | None = None
) -> None:
    http = pooch.HTTPDownloader(
        progressbar=bar or False,
        chunk_size=1 << 16,
        timeout=_TIMEOUT_S,
        # Compressed on the way, it would be a different file.
        headers={"User-Agent": f"mmap-st/{mmap_st.__version__}", "Accept-Encoding": "identity"},
    )

    def fetch_and_check(url: str, target: str, store: pooch.Pooch) -> None:
        Path(target).unlink()  # pooch makes it private to its owner; made anew, it has the usual mode
        try:
            http(url, target, store)
        except exceptions.HTTPError as error:
            if error.response is not None and error.response.status_code in _WORTH_A_RETRY:
                raise
            raise DownloadError(_sentence(url, error)) from error
        check(Path(target), file, recorded)

    store = pooch.create(
        path.parent, "", registry={path.name: file.sha256}, urls={path.name: url}, retry_if_failed=_RETRIES
    )
    try:
        store.fetch(path.name, downloader=fetch_and_check)
    except exceptions.RequestException as error:
        raise DownloadError(_sentence(url, error)) from error
    except OSError as error:
        raise DownloadError(disk_sentence(error, path)) from error


def _sentence(url: str, error: exceptions.RequestException) -> str:
    if error.response is None:
        advice = "check the network and its proxy, and run the same command again"
        return f"{url} cannot be fetched ({type(error).__name__}); {advice}."
    answer = f"HTTP {error.response.status_code} {error.response.reason}"
    if error.response.status_code in _WORTH_A_RETRY:
        return f"{url} cannot be fetched now ({answer}); run the same command again later."
    advice = "check whether the data set has moved, or name a copy of it with --mirror"
    return f"{url} cannot be fetched ({answer}); {advice}."


class _Bar:
    """A progress bar as pooch drives one for each file, in bytes of all files."""

    def __init__(self, progress: Progress, files: Sequence[RemoteFile]) -> None:
        self._progress = progress
        self._sizes = {file.path: file.size or 0 for file in files}
        self._path, self._done = "", 0
        progress.start(len(files), sum(self._sizes.values()))

    def start(self, file: RemoteFile) -> None:
        self._path, self._done = file.path, 0
        self._progress.start_item(Path(file.path).name)

    @property
    def total(self) -> int:
        return self._sizes[self._path]

    @total.setter
    def total(self, size: int) -> None:  # set by pooch when an attempt starts
        self.reset()
        self._sizes[self._path] = size or self.total
        self._progress.set_total(sum(self._sizes.values()))

    def update(self, amount: int) -> None:
        amount = min(amount, self.total - self._done)  # pooch counts the last chunk as full
        self._done += amount
        self._progress.advance(amount)

    def reset(self) -> None:
        self._progress.advance(-self._done)
        self._done = 0

    def close(self) -> None:
        pass


def _is_there(out: Path, file: RemoteFile, sums: dict[str, str], report: DownloadReport) -> bool:
    """Whether the file is there and right, or cannot be; one that is wrong is set aside."""
    try:
        if not (out / file.path).exists():
            return False
        try:
            _record(out, file.path, check(out / file.path, file, sums.get(file.path)), sums)
        except DownloadError:
            report.set_aside(out, file.path)
            return False
    except OSError as error:
        report.failed[file.path] = disk_sentence(error, out / file.path)
    else:
        report.kept.append(file.path)
    return True


def _read_sums(out: Path) -> dict[str, str]:
    """SHA-256 by path, as recorded in ``SHA256SUMS``; none where nothing was."""
    path = out / "SHA256SUMS"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {match[2]: match[1] for line in lines if (match := _SUM.fullmatch(line))}


def _record(out: Path, path: str, sha256: str, sums: dict[str, str]) -> None:
    """Record a SHA-256, as ``sha256sum --check`` reads it; a killed run leaves the old record or the new."""
    if sums.get(path) != sha256:
        sums[path] = sha256
        new = out / "SHA256SUMS.new"
        new.write_text("".join(f"{sums[path]}  {path}\n" for path in sorted(sums)), "utf-8")
        os.replace(new, out / "SHA256SUMS")


def _find_images(
    sections: Sequence[str], listing: str, sums: Mapping[str, str], report: DownloadReport
) -> list[RemoteFile]:
    """Images of her2st by the list of files; those that were fetched before by the record of them."""
    found = _images_of(sections, {path: RemoteFile(path, "images") for path in sums})
    reason = f"{listing} lists no image of this section."
    if not all(found.values()):
        try:
            found = _images_of(sections, _read_listing(listing)) | {k: v for k, v in found.items() if v}
        except DownloadError as error:
            reason = f"the image's name is in a list of files that cannot be fetched: {error}"
    report.failed |= {_image_folder(section): reason for section, images in found.items() if not images}
    return [image for section in sections for image in found[section]]


def _read_listing(url: str) -> dict[str, RemoteFile]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tree"
        _fetch(RemoteFile("tree", "listing"), url, path)
        try:
            return {
                one["path"]: RemoteFile(one["path"], "images", None, one["size"], git_sha1=one["sha"])
                for one in json.loads(path.read_text("utf-8"))["tree"]
                if one["type"] == "blob"
            }
        except (ValueError, KeyError, TypeError) as error:
            raise DownloadError(f"{url} is not a list of files as GitHub gives it.") from error


def _images_of(sections: Sequence[str], files: Mapping[str, RemoteFile]) -> dict[str, list[RemoteFile]]:
    # Names come from the network: none may lead out of the section's folder.
    return {
        section: [
            file
            for path, file in sorted(files.items())
            if path.startswith(folder) and _IMAGE.fullmatch(path.removeprefix(folder))
        ]
        for section in sections
        for folder in [_image_folder(section)]
    }


def _image_folder(section: str) -> str:
    return f"data/ST-imgs/{section.rstrip('0123456789')}/{section}/"
