"""Samples of HEST-1k by id: huggingface_hub fetches them from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mmap_st.data.download.datasets import DownloadReport, disk_sentence, find_words
from mmap_st.errors import RequestError
from mmap_st.hub import HubRequest, hub_host_resolves, hub_sentence, quiet_hub, unreachable
from mmap_st.progress import Progress

_HUB = HubRequest("hest", "MahmoodLab/hest", "dataset")
# What the reader `hest` needs of a sample; and tables of all samples, which are not in a folder.
_FOLDERS = ("st", "wsis", "metadata")
_TABLES = "HEST_v*.csv"


def list_samples() -> dict[str, int]:
    """Bytes of each sample, by its id.

    Raises
    ------
    RequestError
        If the hub does not answer.
    """
    sizes: dict[str, int] = {}
    for path, size in _list_files().items():
        if "/" in path:
            sizes[Path(path).stem] = sizes.get(Path(path).stem, 0) + size
    return dict(sorted(sizes.items()))


def fetch_samples(ids: Sequence[str], out: Path, report: DownloadReport, progress: Progress) -> None:
    """Fetch counts, images and metadata of samples; files that are there and right are kept.

    Raises
    ------
    RequestError
        If an id is unknown, or no file can be had.
    """
    from huggingface_hub import snapshot_download

    listed = _list_files()
    known = sorted({Path(path).stem for path in listed if path.startswith("st/")})
    ids = find_words("sample", ids, known, "hest")
    wanted = {path: size for path, size in listed.items() if "/" not in path or Path(path).stem in ids}
    for path, size in wanted.items():
        if (out / path).is_file() and (out / path).stat().st_size != size:
            report.set_aside(out, path)
    before = _change_times(out, wanted)
    progress.start(1, sum(wanted.values()))
    progress.start_item(", ".join(ids))
    reason = "was not fetched; run the same command again."
    try:
        with _hub_errors(out):
            snapshot_download(
                _HUB.repo,
                repo_type=_HUB.kind,
                local_dir=out,
                allow_patterns=[*wanted],
                tqdm_class=_bar_class(progress),
            )
    except RequestError as error:
        if not _change_times(out, wanted):
            raise
        reason = str(error)
    # Where the hub does not answer, snapshot_download may return a folder that lacks files.
    after = _change_times(out, wanted)
    report.failed = {path: reason for path in wanted if path not in after}
    report.kept = [path for path, time in after.items() if before.get(path) == time]
    report.fetched = [path for path in after if path not in report.kept]
    report.received = sum(wanted[path] for path in report.fetched)


def _list_files() -> dict[str, int]:
    """Bytes of every file of the repository that a request may select, by its path."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _hub_errors(Path()):
        return {
            entry.path: entry.size
            for folder in (None, *_FOLDERS)
            for entry in HfApi().list_repo_tree(_HUB.repo, folder, repo_type=_HUB.kind)
            if isinstance(entry, RepoFile) and (folder or fnmatch(entry.path, _TABLES))
        }


@contextmanager
def _hub_errors(out: Path) -> Iterator[None]:
    """Raise what goes wrong as a RequestError, in one sentence."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not hub_host_resolves():
        raise RequestError(unreachable(_HUB))
    try:
        with quiet_hub():
            yield
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise RequestError(hub_sentence(error, _HUB)) from error
    except Exception as error:  # of HTTP or the disk, by huggingface_hub's version
        if isinstance(error, OSError) and error.errno is not None:
            raise RequestError(disk_sentence(error, Path(error.filename or out / "st"))) from error
        raise RequestError(hub_sentence(error, _HUB)) from error


def _change_times(out: Path, paths: Mapping[str, int]) -> dict[str, int]:
    """When those files that are there were changed, in nanoseconds."""
    return {path: (out / path).stat().st_mtime_ns for path in paths if (out / path).is_file()}


def _bar_class(progress: Progress) -> Any:
    """A class of progress bars that draw nothing and pass bytes on to `progress`."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            # There are bars over files, over bytes received, and over bytes written: the last counts.
            self._counts = settings.get("unit") == "B" and settings.get("desc") != "Downloading bytes"
            super().__init__(*args, **{**settings, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if self._counts:
                progress.advance(int(n or 0))

    return Bar
