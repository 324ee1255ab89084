"""RUN/: the folder that `mmap fit-head` writes and other commands read, and its one writer."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mmap_st.errors import RequestError, WriteError, first_line
from mmap_st.files import InUseError, file_lock

HEAD_JSON, WEIGHTS, METRICS, HISTORY, GENES, PREDICTIONS = (
    "head.json",
    "head.safetensors",
    "metrics.json",
    "history.csv",
    "genes.csv",
    "predictions",
)
#: All that a run consists of.
RUN_FILES = (HEAD_JSON, WEIGHTS, METRICS, HISTORY, GENES, PREDICTIONS)
#: Of a cross-validation: each fold's runs, one per seed.
FOLDS = "folds"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong on the disk while `path` is written into one sentence."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"--out {path} cannot be written ({error.strerror or first_line(error)}); free some space or name"
            " another folder, and run the same command again."
        ) from error


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
    path = path.resolve()
    _check_free(path, overwrite)
    refusal = f"--out {path} is being written by another process; wait until it ends, or name another folder."
    with only_writer(path, path.with_name(f".{path.name}.lock"), refusal):
        _check_free(path, overwrite)  # another process may have finished one meanwhile
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
                held.enter_context(_lock_in_place(lock))
            except InUseError as error:
                raise RequestError(refusal) from error
        held.callback(lock.unlink, missing_ok=True)  # while it is held
        yield


@contextmanager
def _lock_in_place(lock: Path) -> Iterator[None]:
    """Hold a lock file that its last holder may have removed between our opening and locking it."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
        before = _inode(lock)
        with file_lock(lock):
            # The same file before and after: it is the one that we opened, and others will open.
            if before is not None and _inode(lock) == before:
                yield
                return


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _check_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise RequestError(f"--out {path} is a file; name a folder.")
    if (path / HEAD_JSON).is_file():
        if not overwrite:
            raise RequestError(
                f"--out {path} holds a finished run; name another folder, or give --overwrite to replace it."
            )
    elif path.is_dir() and any(path.iterdir()) and not _is_being_replaced(path):
        raise RequestError(f"--out {path} holds other things than a run; name another folder.")


def _is_being_replaced(path: Path) -> bool:
    """Whether an earlier process was killed while it put a finished run in the place of another."""
    return not (path / METRICS).exists() and (_draft_of(path) / METRICS).is_file()


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


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


def finish_run_folder(draft: Path, path: Path) -> None:
    """Put a finished run in the place of `path`; nothing that is not of a run is moved or removed there.

    A run that is replaced stops being one before the first of its files is: if this is interrupted, nobody
    reads the head of one run with the scores of another.
    """
    path = path.resolve()
    if not path.exists():
        draft.rename(path)
        return
    for name in (METRICS, HEAD_JSON, WEIGHTS, HISTORY, GENES):
        (path / name).unlink(missing_ok=True)
    (path / PREDICTIONS).mkdir(exist_ok=True)
    for file in (path / PREDICTIONS).glob("*.h5ad"):
        file.unlink()
    for file in (draft / PREDICTIONS).iterdir():
        file.rename(path / PREDICTIONS / file.name)
    (draft / PREDICTIONS).rmdir()
    for name in (WEIGHTS, HISTORY, GENES, HEAD_JSON, METRICS):
        if (draft / name).exists():
            (draft / name).rename(path / name)
    draft.rmdir()


def write_table(path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()) -> None:
    """Write rows as CSV, what is not a number empty; `columns` name those of a table without rows."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else list(columns))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: "" if value != value else value for key, value in row.items()})
