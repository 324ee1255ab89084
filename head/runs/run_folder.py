"""RUN/: the folder that `mmap fit-head` writes and other commands read."""

from __future__ import annotations

import csv
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmap_st.errors import HeadError, RequestError, WriteError, first_line
from mmap_st.head.interface import SPOTS, FittedHead, HeadMethod, Shape, make_settings
from mmap_st.head.registry import head_method
from mmap_st.head.runs.head_card import FORMAT_VERSION, HeadCard
from mmap_st.head.scoring import Spread, from_json, is_spread, read_json, saved_spread, write_json

_LOG = logging.getLogger(__name__)

HEAD_JSON, WEIGHTS, METRICS, HISTORY, GENES, PREDICTIONS = (
    "head.json",
    "head.safetensors",
    "metrics.json",
    "history.csv",
    "genes.csv",
    "predictions",
)
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
    """

    head: FittedHead
    method: HeadMethod
    settings: Any
    card: HeadCard
    spread: Spread | None

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


def check_run_folder(path: Path) -> None:
    """Refuse to write a run over something that is no run.

    Raises
    ------
    RequestError
        If `path` is a file, or a folder with other things in it.
    """
    if path.exists() and not path.is_dir():
        raise RequestError(f"--out {path} is a file; name a folder.")
    if path.is_dir() and any(path.iterdir()) and not (path / HEAD_JSON).is_file():
        raise RequestError(f"--out {path} holds other things than a run; name another folder.")


def begin_run_folder(path: Path) -> Path:
    """Make an empty neighbour of `path` to write into; `finish_run_folder` puts it in place.

    Raises
    ------
    RequestError
        If it cannot be made.
    """
    path = path.resolve()
    draft = path.with_name(f".{path.name}.unfinished")
    with writing(path):
        shutil.rmtree(draft, ignore_errors=True)
        (draft / PREDICTIONS).mkdir(parents=True)
    return draft


def finish_run_folder(draft: Path, path: Path) -> None:
    """Put a finished run in the place of `path`; files there that no run writes are kept."""
    path = path.resolve()
    for other in path.iterdir() if path.exists() else ():
        if other.name not in (HEAD_JSON, WEIGHTS, METRICS, HISTORY, GENES, PREDICTIONS):
            other.rename(draft / other.name)
    before = path.with_name(f".{path.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    if path.exists():
        path.rename(before)
    draft.rename(path)
    shutil.rmtree(before, ignore_errors=True)


def write_head(folder: Path, head: FittedHead, card: HeadCard, spread: Spread | None) -> None:
    """Write head.safetensors, head.json and history.csv."""
    import numpy as np
    from safetensors.numpy import save_file

    tensors = {**head.tensors(), **(spread.tensors() if spread else {})}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / WEIGHTS)
    write_json(folder / HEAD_JSON, card)
    write_table(folder / HISTORY, head.history, ("epoch",))


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
    return SavedHead(head, method, settings, card, saved_spread(tensors))


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
