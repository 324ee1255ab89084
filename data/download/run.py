"""Download a data set, from wherever it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from mmap_st.data.download.datasets import DownloadReport, choose, find_dataset
from mmap_st.data.download.hest import fetch_samples
from mmap_st.data.download.web import fetch_files
from mmap_st.errors import RequestError
from mmap_st.files import cannot_be_written, check_folder_out
from mmap_st.progress import Progress, Silent


def download(
    name: str,
    out: Path,
    *,
    sections: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    mirror: str | None = None,
    ids: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> DownloadReport:
    """Fetch what is not there yet of a data set; files that are there and right are kept.

    Parameters
    ----------
    name
        A name of `DATASETS`.
    out
        Folder to write; files have the same paths in it as in the data set.
    sections, kinds
        Which sections, and which of `KINDS` of them; None means all.
    mirror
        Address to use in place of the data set's own.
    ids
        Which samples, for HEST-1k.
    progress
        Listener.

    Raises
    ------
    RequestError
        If the data set, a section, a kind or a sample is unknown, or the folder cannot be written.
    """
    started = time.monotonic()
    dataset, report, progress = find_dataset(name), DownloadReport(), progress or Silent()
    files, unnamed = choose(dataset, sections, kinds)
    _check_arguments(name, mirror, ids)
    with _only_run_in(out):
        if ids is not None:
            fetch_samples(ids, out, report, progress)
        else:
            base = dataset.base if mirror is None else f"{mirror.rstrip('/')}/"
            listing = dataset.listing if mirror is None else f"{base}tree.json"
            fetch_files(files, unnamed, base, listing, out, report, progress)
    report.seconds = time.monotonic() - started
    return report


def _check_arguments(name: str, mirror: str | None, ids: Sequence[str] | None) -> None:
    """Refuse arguments that are not for this data set, before a folder is made."""
    if name == "hest" and mirror is not None:
        raise RequestError("--mirror is not for hest; HF_ENDPOINT names a mirror of the hub.")
    if name == "hest" and ids is None:
        raise RequestError(
            "HEST-1k is about 2 TB: name samples, such as --ids TENX95; `mmap download hest --list` lists"
            " them."
        )
    if name != "hest" and ids is not None:
        raise RequestError(f"{name} has no samples with ids: leave out --ids.")
    parts = urlsplit(mirror or "https://here")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise RequestError(
            f"--mirror {mirror} is not an address; give one such as https://example.org/her2st/."
        )


@contextmanager
def _only_run_in(folder: Path) -> Iterator[None]:
    """Create the folder and hold its lock: two runs would write the same files."""
    check_folder_out(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".mmap-download.lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise RequestError(f"Another download writes to {folder}; wait until it ends.") from error
    except OSError as error:
        raise RequestError(
            f"{folder} {cannot_be_written(error, 'choose another folder with --out')}"
        ) from error
    try:
        yield
    finally:
        lock.release()
