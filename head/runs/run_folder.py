"""RUN/: the folder that `mmap fit-head` writes and other commands read, and its one writer."""

from __future__ import annotations

import csv
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mmap_st.errors import RequestError, WriteError, first_line, printable
from mmap_st.files import InUseError, check_folder_out, file_name, passing_lock
from mmap_st.files import writing as writing
from mmap_st.head.sharing import CARD_JSON, README, is_own

HEAD_JSON = "head.json"
WEIGHTS = "head.safetensors"
METRICS = "metrics.json"
HISTORY = "history.csv"
GENES = "genes.csv"
PREDICTIONS = "predictions"
#: All that a run consists of.
RUN_FILES = (HEAD_JSON, WEIGHTS, METRICS, HISTORY, GENES, README, CARD_JSON, PREDICTIONS)
#: Those of them that a user may have written: one that is not as a fit wrote it is not the run's.
_CARD_FILES = (README, CARD_JSON)
#: Of a cross-validation: each fold's runs, one per seed.
FOLDS = "folds"

_LOG = logging.getLogger(__name__)


@contextmanager
def run_folder(path: Path, *, overwrite: bool = False) -> Iterator[None]:
    """Hold the one right to write a run to `path`.

    Parameters
    ----------
    path
        Where the run will be; nothing is made there.
    overwrite
        Whether a run that is there may be replaced.

    Raises
    ------
    RequestError
        If `path` is a file, holds something that is not a run or a run that may not be replaced, or is being
        written by another process.
    """
    check_folder_out(path)
    path = path.resolve()
    if not _is_half_replaced(path):
        _check_free(path, overwrite)
    refusal = f"--out {path} is being written by another process; wait until it ends, or name another folder."
    with only_writer(path, _lock_of(path), refusal):
        with writing(path):
            _end_replacement(path)
        _check_free(path, overwrite)  # another process may have finished one meanwhile
        yield


def restore_run(path: Path) -> None:
    """Make a run whole again whose replacement was interrupted; whoever reads a run asks for this first.

    It becomes the earlier run, or the new one where files of that are in place; a message says which.

    Raises
    ------
    RequestError
        If another process is replacing it now, or its files cannot be moved.
    """
    path = path.resolve()
    if not _is_half_replaced(path):
        return
    refusal = f"{path} is being replaced by another process; wait until it ends, and run the command again."
    try:
        with only_writer(path, _lock_of(path), refusal):
            _end_replacement(path)
    except (OSError, WriteError) as error:
        cause = error.__cause__ or error
        said = getattr(cause, "strerror", None) or first_line(cause)
        raise WriteError(
            f"the replacement of {path} was interrupted, and it cannot be made whole ({said}); run the same"
            " command where its folder may be written to."
        ) from error


@contextmanager
def only_run_writer(path: Path, wait_s: float) -> Iterator[None]:
    """Hold the one right to write a run to `path`, after waiting for it as long at most.

    Raises
    ------
    RequestError
        If another process still holds it then, or it cannot be made.
    """
    last = time.monotonic() + wait_s
    refusal = f"{path} is being written by another process; wait until it ends, and run the command again."
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(only_writer(path, _lock_of(path), refusal))
                break
            except RequestError as error:
                if not isinstance(error.__cause__, InUseError) or time.monotonic() > last:
                    raise
            time.sleep(1.0)
        yield


@contextmanager
def only_writer(out: Path, lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file; it is made here with its folder, and removed in the end.

    Parameters
    ----------
    out
        What is written meanwhile, for messages.
    refusal
        What to say if another process holds the lock.

    Raises
    ------
    RequestError
        If another process holds it, or it cannot be made.
    """
    with ExitStack() as held:
        with writing(out):
            try:
                held.enter_context(passing_lock(lock))
            except InUseError as error:
                raise RequestError(refusal) from error
        yield


def _check_free(path: Path, overwrite: bool) -> None:
    if (path / HEAD_JSON).is_file():
        if not overwrite:
            raise RequestError(
                f"--out {path} holds a finished run; name another folder, or give --overwrite to replace it."
            )
    elif path.is_dir() and any(path.iterdir()) and not _is_being_replaced(path):
        raise RequestError(f"--out {path} holds other things than a run; name another folder.")


def _is_being_replaced(path: Path) -> bool:
    """Whether an earlier process was killed while it put a finished run in the place of another.

    Versions that did not keep the earlier run meanwhile left this, which only another run can end.
    """
    return not (path / METRICS).exists() and (_draft_of(path) / METRICS).is_file()


def _draft_of(path: Path) -> Path:
    return path.with_name(file_name(f".{path.name}", ".unfinished"))


def _earlier_of(path: Path) -> Path:
    """Where the files of a run are while another one takes its place."""
    return path.with_name(file_name(f".{path.name}", ".before"))


def _lock_of(path: Path) -> Path:
    return path.with_name(file_name(f".{path.name}", ".lock"))


def start_run_folder(path: Path) -> Path:
    """Make an empty neighbour of `path` to write into; `finish_run_folder` puts it in place.

    Raises
    ------
    RequestError
        If it cannot be made.
    """
    path = path.resolve()
    draft = _draft_of(path)
    with writing(path):
        shutil.rmtree(draft, ignore_errors=True)
        (draft / PREDICTIONS).mkdir(parents=True)
    return draft


#: Files in the order in which they go to a run's folder. It is a run once the last is there, and the first
#: tells that they have begun to go.
_IN_ORDER = (WEIGHTS, HISTORY, GENES, *_CARD_FILES, HEAD_JSON, METRICS)


def finish_run_folder(draft: Path, path: Path) -> None:
    """Put a finished run in the place of `path`; nothing that is not of a run is moved or removed there.

    A run that is replaced stops being one before the first of its files is: if this is interrupted, nobody
    reads the head of one run with the scores of another, and `restore_run` finds one of the two whole.
    """
    path = path.resolve()
    if not path.exists():
        draft.rename(path)
        return
    _take_away(path, _earlier_of(path))
    _put_in_place(draft, path)
    shutil.rmtree(_earlier_of(path))
    shutil.rmtree(draft)


def _take_away(path: Path, earlier: Path) -> None:
    """Move a run's files out of its folder."""
    (earlier / PREDICTIONS).mkdir(parents=True, exist_ok=True)
    for name in reversed(_IN_ORDER):
        if _is_of_run(path / name):
            (path / name).rename(earlier / name)
    for file in (path / PREDICTIONS).glob("*.h5ad"):
        file.rename(earlier / PREDICTIONS / file.name)


def _put_in_place(source: Path, path: Path) -> None:
    """Move a run's files into its folder; begun once, it may be done again until it is finished."""
    (path / PREDICTIONS).mkdir(parents=True, exist_ok=True)
    first, *others = _IN_ORDER
    if (source / first).exists():
        (source / first).replace(path / first)
    for file in (source / PREDICTIONS).glob("*.h5ad"):
        file.replace(path / PREDICTIONS / file.name)
    for name in others:
        if not (source / name).exists():
            continue
        if name in _CARD_FILES and (path / name).exists():
            _LOG.warning("%s is kept: it is not the card that a fit wrote.", printable(str(path / name)))
        else:
            (source / name).replace(path / name)


def _is_of_run(file: Path) -> bool:
    """Whether a file in a run's folder is of the run, and not a user's own."""
    return file.name in RUN_FILES and file.exists() and (file.name not in _CARD_FILES or is_own(file))


def _is_half_replaced(path: Path) -> bool:
    return _earlier_of(path).is_dir() or _has_begun(_draft_of(path), path)


def _has_begun(draft: Path, path: Path) -> bool:
    """Whether files of a draft are in place, and others are not yet."""
    begun = (path / WEIGHTS).is_file() and not (draft / WEIGHTS).exists()
    return begun and (draft / METRICS).is_file() and not (path / METRICS).exists()


def _end_replacement(path: Path) -> None:
    """Go on where a replacement was interrupted, or take back what it did; the caller holds the lock."""
    draft, earlier = _draft_of(path), _earlier_of(path)
    found = None
    if _has_begun(draft, path):
        _put_in_place(draft, path)
        found = "the new run is complete now"
    elif (earlier / METRICS).is_file() and not (path / METRICS).exists():
        if path.exists():
            _put_in_place(earlier, path)
        else:
            earlier.rename(path)
        # An early version had a user's own files in the draft meanwhile.
        for other in list(draft.iterdir()) if draft.is_dir() else ():
            if not _is_of_run(other) and not (path / other.name).exists():
                other.rename(path / other.name)
        found = "the earlier run is back"
    if (path / METRICS).is_file() and all(_is_of_run(file) for file in earlier.glob("*")):
        shutil.rmtree(earlier, ignore_errors=True)
        shutil.rmtree(draft, ignore_errors=True)
    if found is not None:
        _LOG.warning("the replacement of %s was interrupted; %s.", printable(str(path)), found)


def write_table(path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()) -> None:
    """Write rows as CSV, what is not a number empty; `columns` name those of a table without rows."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else list(columns))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: "" if value != value else value for key, value in row.items()})


def histories_of(run: Path) -> dict[str, list[dict[str, float]]]:
    """Validation scores of what the fits of a run tried, by what a fit is called.

    Parameters
    ----------
    run
        Folder of `mmap fit-head` or `mmap evaluate`; a folder of anything else has none.

    Returns
    -------
    A row for everything that was tried, NaN where a file has no number; the fits of a joined head one by one.
    What cannot be read is left out: it is there to be looked at.
    """
    files = {"this run": run / HISTORY}
    several = len(list(run.glob(f"{FOLDS}/*/seed*"))) > len(list(run.glob(f"{FOLDS}/*")))
    for file in sorted(run.glob(f"{FOLDS}/*/seed*/{HISTORY}")):
        fold, seed = file.parent.parent.name, file.parent.name.removeprefix("seed")
        files[f"fold {fold}, seed {seed}" if several else f"fold {fold}"] = file
    found: dict[str, list[dict[str, float]]] = {}
    for name, file in files.items():
        for row in _numbers_in(file):
            encoder = row.pop("encoder", None)
            found.setdefault(name if encoder is None else f"{name}, encoder {encoder:.0f}", []).append(row)
    return found


def _numbers_in(file: Path) -> list[dict[str, float]]:
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
        return [{key: float(value) if value else float("nan") for key, value in row.items()} for row in rows]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        _LOG.info("no validation scores of %s: %s", printable(str(file)), first_line(error))
        return []
