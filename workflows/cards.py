"""What a path holds, and the card of a head that it holds."""

from __future__ import annotations

from pathlib import Path

from mmap_st.errors import RequestError, StoreError
from mmap_st.extract.store import FeatureStore, is_store, is_zipped_folder
from mmap_st.files import is_archive, refuse_special
from mmap_st.head.evaluation import REQUEST
from mmap_st.head.runs import FOLDS, HEAD_JSON, restore_run
from mmap_st.head.sharing import ModelCard, card_of_run, is_on_hub, pack_run, pinned, run_at
from mmap_st.urls import url_of


def card_or_store(path: Path) -> ModelCard | FeatureStore:
    """The card of a trained head, or the feature store, whichever lies at `path`.

    Raises
    ------
    RequestError
        If neither does, or it is damaged.
    """
    if is_on_hub(path):
        with run_at(pinned(path)) as folder:
            return card_of_run(folder)
    if (url := url_of(path)) is not None:
        return FeatureStore(url)
    refuse_special(path, RequestError)
    if is_store(path) or is_zipped_folder(path):
        return FeatureStore(path)  # of a zipped folder it says what is wrong
    if not path.is_file():
        restore_run(path)
    if (path / HEAD_JSON).is_file() or is_archive(path):
        with run_at(path) as folder:
            return card_of_run(folder)
    if (path / REQUEST).is_file():
        runs = sorted(path.glob(f"{FOLDS}/*/seed*")) or sorted(path.glob(f"*/{FOLDS}/*/seed*"))
        of_fold = f", such as {runs[0]}" if runs else ""
        raise RequestError(f"{path} holds an evaluation; name the run of one of its folds{of_fold}.")
    if path.is_dir() and any(path.glob("*.h5ad")):
        raise RequestError(
            f"{path} holds predictions; `mmap report` draws them, and info takes a run or a store."
        )
    try:
        return FeatureStore(path)
    except StoreError as error:
        if not path.exists():
            raise
        what = "a file" if path.is_file() else "a folder of other things"
        raise RequestError(
            f"{path} is {what}: it is not a feature store, nor a run of `mmap fit-head` or a packed one; name"
            " one of these."
        ) from error


def pack_head(run: Path, out: Path, *, overwrite: bool = False) -> None:
    """Write a trained head into one file; see `HeadRun.pack`, which loads it first.

    Raises
    ------
    RequestError
        If `run` is not a run or is damaged, or the file exists or cannot be written.
    """
    if is_store(run):
        raise RequestError(f"{run} is a feature store; name the folder of a trained head.")
    if not is_on_hub(run):
        refuse_special(run, RequestError)
        if not run.is_file():
            restore_run(run)
        if not run.exists() or (run.is_file() and not is_archive(run)):
            what = "is a file of another kind" if run.exists() else "does not exist"
            raise RequestError(f"{run} {what}; name a run of `mmap fit-head`, or a feature store.")
    pack_run(pinned(run), out, overwrite=overwrite)
