"""RUN/: the folder that `mmap fit-head` writes and other commands read, and what its head.json holds."""

from __future__ import annotations

import csv
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmap_st.errors import HeadError, RequestError, WriteError, first_line
from mmap_st.files import InUseError, file_lock, sha256_of_file
from mmap_st.head.interface import SPOTS, FittedHead, HeadMethod, Shape, make_settings
from mmap_st.head.registry import head_method
from mmap_st.head.scoring import OMITTED, Spread, from_json, is_spread, read_json, saved_spread, write_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class PanelCard:
    """The genes that a head predicts, in order, how they were chosen and on which slides.

    `gene_ids` is None where the count tables have none.
    """

    genes: tuple[str, ...]
    gene_ids: tuple[str, ...] | None
    how: str
    slides: tuple[str, ...]


@dataclass(frozen=True)
class NormalisationCard:
    """How targets and embeddings were normalised."""

    targets: str
    embeddings: str


@dataclass(frozen=True)
class SplitCard:
    """Names of the slides of each part of the split."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class HeadCard:
    """Contents of head.json.

    Attributes
    ----------
    format_version, package_version
        Of the file, and of the package that wrote it.
    head, head_code_sha256
        Name of the head, and the hash of its code where users brought it.
    settings, chosen, seed
        As given, and what was chosen within training.
    shape
        Numbers of magnifications and genes, width of embeddings (and of tokens).
    tokens
        Side of the grids of tokens that the head was trained on; 0 where it uses none.
    panel, normalisation
        Genes, and normalisation of targets and embeddings.
    encoder
        What of the recipe of the embeddings a head depends on.
    magnifications
        In micrometres per pixel, finest first.
    slides
        Of each part of the split.
    """

    format_version: int = FORMAT_VERSION
    package_version: str = ""
    head: str
    head_code_sha256: str = field(default="", metadata=OMITTED)
    settings: Mapping[str, object]
    chosen: Mapping[str, object] = field(default_factory=dict)
    seed: int
    shape: Mapping[str, int]
    tokens: int = field(default=0, metadata=OMITTED)
    panel: PanelCard
    normalisation: NormalisationCard
    encoder: Mapping[str, object]
    magnifications: tuple[float, ...]
    slides: SplitCard

    @property
    def encoder_name(self) -> str:
        """Name of the encoder."""
        encoder = self.encoder["encoder"]
        assert isinstance(encoder, Mapping)
        return str(encoder["name"])


_LOG = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class SavedHead:
    """A trained head with all that it needs to predict.

    Attributes
    ----------
    head
        The head itself.
    method, settings
        What it is.
    card
        Contents of head.json.
    spread
        Of its predictions; None where it was not calibrated.
    sha256
        Of its weights, which predictions name.
    """

    head: FittedHead
    method: HeadMethod
    settings: Any
    card: HeadCard
    spread: Spread | None
    sha256: str

    @property
    def genes(self) -> list[str]:
        """The panel, in order."""
        return list(self.card.panel.genes)

    @property
    def encoder(self) -> str:
        """Name of the encoder."""
        return self.card.encoder_name

    @property
    def mpps(self) -> tuple[float, ...]:
        """Magnifications, finest first."""
        return self.card.magnifications

    @property
    def tokens(self) -> int:
        """Side of the grids of tokens that it was trained on; 0 where it needs none."""
        return self.card.tokens


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


def write_head(folder: Path, head: FittedHead, card: HeadCard, spread: Spread | None) -> str:
    """Write head.safetensors, head.json and history.csv; returns the sha256 of the first."""
    import numpy as np
    from safetensors.numpy import save_file

    tensors = {**head.tensors(), **(spread.tensors() if spread else {})}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / WEIGHTS)
    write_json(folder / HEAD_JSON, card)
    write_table(folder / HISTORY, head.history, ("epoch",))
    return sha256_of_file(folder / WEIGHTS)


def read_head(folder: Path) -> SavedHead:
    """Load a trained head.

    Raises
    ------
    HeadError
        If `folder` is not a run, or one of a format that this version does not know.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not (folder / HEAD_JSON).is_file() or not (folder / WEIGHTS).is_file():
        raise HeadError(f"{folder} is not a run of `mmap fit-head`: {HEAD_JSON} or {WEIGHTS} is missing.")
    try:
        content = read_json(folder / HEAD_JSON)
        tensors = load_file(folder / WEIGHTS)
        sha256 = sha256_of_file(folder / WEIGHTS)
    except (HeadError, OSError, SafetensorError) as error:
        raise HeadError(f"{folder} is damaged and cannot be loaded ({first_line(error)}).") from error
    if content.get("format_version") != FORMAT_VERSION:
        raise HeadError(
            f"{folder} has format version {content.get('format_version')}; this program reads"
            f" {FORMAT_VERSION}."
        )
    try:
        card = from_json(HeadCard, content)
    except TypeError as error:
        raise HeadError(f"{folder} is damaged and cannot be loaded ({first_line(error)}).") from error
    method = head_method(card.head)
    if card.head_code_sha256 != method.code:
        _LOG.warning("%s was trained with other code of the head %s than there is now.", folder, method.name)
    settings = make_settings(method, card.settings)
    head = method.load(tensors, settings, from_json(Shape, dict(card.shape)))
    return SavedHead(head, method, settings, card, saved_spread(tensors), sha256)


def count_parameters(folder: Path) -> int:
    """How many numbers a trained head consists of; training spots that it refers to are not counted."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="numpy") as tensors:
        shapes = {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
    return sum(math.prod(shape) for key, shape in shapes.items() if not is_spread(key) and SPOTS not in key)


def write_table(path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()) -> None:
    """Write rows as CSV, what is not a number empty; `columns` name those of a table without rows."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else list(columns))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: "" if value != value else value for key, value in row.items()})
