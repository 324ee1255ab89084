"""Download a data set: every file is fetched, checked and put in its place; one that fails stops no other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

import pooch

from mmap_st.data.download.checks import check
from mmap_st.data.download.datasets import RemoteFile, choose, find_dataset
from mmap_st.data.download.folder import alone_in, read_sums, write_sums
from mmap_st.data.download.listing import find_images
from mmap_st.data.download.progress import Progress, Silent
from mmap_st.data.download.transfer import (
    DiskFullError,
    NoAnswerError,
    Patience,
    Transfer,
    discard,
    publish,
    writing,
)
from mmap_st.errors import DownloadError, RequestError

# So many files in a row without any answer: the server is away, not the files.
_ENOUGH_SILENCE = 2


@dataclass(frozen=True)
class DownloadRequest:
    """What to fetch, and where to.

    Attributes
    ----------
    dataset
        A name of `DATASETS`.
    out
        Folder to write; files lie in it as they do in the data set.
    sections, kinds
        Which sections, and which of `KINDS` of them; None means all.
    mirror
        Address to use in place of the data set's own.
    """

    dataset: str
    out: Path
    sections: Sequence[str] | None = None
    kinds: Sequence[str] | None = None
    mirror: str | None = None


@dataclass
class DownloadReport:
    """What became of each file, by its path below the folder.

    Attributes
    ----------
    fetched, kept
        Files that were fetched, and those that were there and are what they should be.
    replaced
        Files that were there and were not; what was there is now ``NAME.old``.
    failed
        Why a file is not there.
    received
        Bytes that came over the network.
    seconds
        How long it took.
    """

    fetched: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    received: int = 0
    seconds: float = 0.0


def download(
    request: DownloadRequest, progress: Progress | None = None, patience: Patience | None = None
) -> DownloadReport:
    """Fetch what is not there yet.

    Parameters
    ----------
    request
        What to fetch, and where to.
    progress
        Told what happens.
    patience
        How long to wait for the server, and how often to ask.

    Raises
    ------
    RequestError
        If the data set, a section or a kind is unknown, or the folder cannot be written.
    """
    begun = time.monotonic()
    dataset = find_dataset(request.dataset)
    choice = choose(dataset, request.sections, request.kinds)
    base = _address(request.mirror) if request.mirror is not None else dataset.base
    listing = dataset.listing if request.mirror is None else f"{base}tree.json"
    with alone_in(request.out), Transfer(patience or Patience()) as transfer:
        work = _Work(request.out, base, transfer, progress or Silent())
        files = list(choice.files)
        if choice.unnamed and listing is not None:
            found, work.report.failed = find_images(choice.unnamed, listing, request.out, work.sums, transfer)
            files += found
        work.do(files)
    work.report.seconds = time.monotonic() - begun
    return work.report


class _Work:
    """The files of one request, on their way."""

    def __init__(self, out: Path, base: str, transfer: Transfer, progress: Progress) -> None:
        self.out = out
        self.sums = read_sums(out)
        self.report = DownloadReport()
        self._base = base
        self._transfer = transfer
        self._progress = progress
        self._sizes: dict[str, int] = {}
        self._here: dict[str, int] = {}

    def do(self, files: Sequence[RemoteFile]) -> None:
        missing = []
        for file in files:
            try:
                with writing(self.out / file.path):
                    if not self._is_here(file):
                        missing.append(file)
            except DownloadError as error:
                self.report.failed[file.path] = str(error)
        self._sizes = {file.path: file.size or 0 for file in missing}
        self._progress.begin(len(missing))
        # pooch says at each file what it does, on standard error; the progress says it here.
        pooch.get_logger().setLevel("WARNING")
        silence, reason = 0, None
        for file in missing:
            if reason is not None:
                self.report.failed[file.path] = reason
                continue
            self._progress.file(Path(file.path).name)
            try:
                self._fetch(file)
            except NoAnswerError as error:
                self.report.failed[file.path] = str(error)
                silence += 1
                if silence == _ENOUGH_SILENCE:
                    reason = f"was not tried, since {urlsplit(self._base).netloc} gives no answer."
            except DiskFullError as error:
                self.report.failed[file.path] = str(error)
                reason = "was not tried, since the disk is full."
            except DownloadError as error:
                self.report.failed[file.path] = str(error)
                silence = 0
            else:
                self.report.fetched.append(file.path)
                silence = 0

    def _is_here(self, file: RemoteFile) -> bool:
        """Whether a file is there and right; one that is wrong is set aside."""
        path = self.out / file.path
        if not path.exists():
            return False
        try:
            sha256 = check(path, file, self.sums.get(file.path))
        except DownloadError:
            path.replace(path.with_name(f"{path.name}.old"))
            self.report.replaced.append(file.path)
            return False
        self._record(file, sha256)
        self.report.kept.append(file.path)
        return True

    def _fetch(self, file: RemoteFile) -> None:
        recorded = self.sums.get(file.path)
        store = pooch.create(
            path=self.out,
            base_url=self._base,
            registry={file.path: file.sha256 or recorded},
            urls={file.path: self._base + quote(file.path)},
        )
        got = ""

        def moved(done: int, total: int | None) -> None:
            self._moved(file, done, total)

        def arrive(url: str, target: str, _: object) -> None:
            """Take the place of pooch's own downloader, which begins every file anew."""
            nonlocal got
            # pooch removes its target when all is over; a run that is killed leaves only the .part.
            Path(target).unlink()
            part = self.out / f"{file.path}.part"
            for again in (True, False):
                resumed = self._transfer.fetch(url, part, moved)
                try:
                    got = check(part, file, recorded)
                    break
                except DownloadError:
                    discard(part)
                    # Two halves that do not fit say nothing of the file: once more, in one piece.
                    if not (resumed and again):
                        raise
            publish(part, Path(target))

        with writing(self.out / file.path):
            store.fetch(file.path, downloader=arrive)
            self._record(file, got)

    def _record(self, file: RemoteFile, sha256: str) -> None:
        if self.sums.get(file.path) != sha256:
            self.sums[file.path] = sha256
            write_sums(self.out, self.sums)

    def _moved(self, file: RemoteFile, done: int, total: int | None) -> None:
        before = self._here.get(file.path)
        # What an earlier run left was not received by this one.
        self.report.received += max(0, done - before) if before is not None else 0
        self._here[file.path] = done
        self._sizes[file.path] = max(done, total or self._sizes[file.path])
        self._progress.moved(sum(self._here.values()), sum(self._sizes.values()))


def _address(mirror: str) -> str:
    parts = urlsplit(mirror)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise RequestError(f"--mirror {mirror} is no address; give one such as https://example.org/her2st/.")
    return mirror.rstrip("/") + "/"
