"""RUN/: the folder that `mmap fit-head` writes and other commands read."""

from __future__ import annotations

import csv
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmap_st
from mmap_st.errors import HeadError, RequestError, WriteError, first_line
from mmap_st.head.interface import SPOTS, FittedHead, HeadMethod, Shape, make_settings
from mmap_st.head.registry import head_method
from mmap_st.head.scoring import Spread, is_spread, saved_spread

_LOG = logging.getLogger(__name__)

FORMAT_VERSION = 1
HEAD_JSON, WEIGHTS, METRICS, HISTORY, GENES, PREDICTIONS = (
    "head.json",
    "head.safetensors",
    "metrics.json",
    "history.csv",
    "genes.csv",
    "predictions",
)


#: Of a cross-validation: each fold's runs, one a seed.
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
    card: dict[str, Any]
    spread: Spread | None

    @property
    def genes(self) -> list[str]:
        """The panel, in order."""
        return list(self.card["panel"]["genes"])

    @property
    def encoder(self) -> str:
        """Name of the encoder."""
        return str(self.card["encoder"]["encoder"]["name"])

    @property
    def mpps(self) -> tuple[float, ...]:
        """Magnifications, finest first."""
        return tuple(float(mpp) for mpp in self.card["magnifications"])

    @property
    def tokens(self) -> int:
        """Side of the grids of tokens that it was trained on; 0 where it needs none."""
        return int(self.card.get("tokens", 0))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a disk says while `path` is written into one sentence."""
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


def write_head(folder: Path, head: FittedHead, card: dict[str, Any], spread: Spread | None) -> None:
    """Write head.safetensors, head.json and history.csv."""
    import numpy as np
    from safetensors.numpy import save_file

    tensors = {**head.tensors(), **(spread.tensors() if spread else {})}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / WEIGHTS)
    full = {"format_version": FORMAT_VERSION, "package_version": mmap_st.__version__, **card}
    write_json(folder / HEAD_JSON, full)
    write_table(folder / HISTORY, head.history, ("epoch",))


def read_head(folder: Path) -> SavedHead:
    """Load a trained head.

    Raises
    ------
    HeadError
        If `folder` is no run, or one of a format that this version does not know.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not (folder / HEAD_JSON).is_file() or not (folder / WEIGHTS).is_file():
        raise HeadError(f"{folder} is no run of `mmap fit-head`: it lacks {HEAD_JSON} or {WEIGHTS}.")
    try:
        card = json.loads((folder / HEAD_JSON).read_text("utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (ValueError, OSError, SafetensorError) as error:
        raise HeadError(f"{folder} is damaged and cannot be loaded ({error}).") from error
    if card.get("format_version") != FORMAT_VERSION:
        raise HeadError(
            f"{folder} has format version {card.get('format_version')}; this program reads {FORMAT_VERSION}."
        )
    method = head_method(card["head"])
    if card.get("head_code_sha256", "") != method.code:
        _LOG.warning("%s was trained with other code of the head %s than there is now.", folder, method.name)
    settings = make_settings(method, card["settings"])
    head = method.load(tensors, settings, Shape(**card["shape"]))
    return SavedHead(head, method, settings, card, saved_spread(tensors))


def count_parameters(folder: Path) -> int:
    """How many numbers a trained head consists of; training spots that it refers to are not counted."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="numpy") as tensors:
        shapes = {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
    return sum(math.prod(shape) for key, shape in shapes.items() if not is_spread(key) and SPOTS not in key)


def read_json(path: Path) -> dict[str, Any]:
    """Read one of a run's JSON files."""
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise HeadError(f"{path} cannot be read ({error}).") from error
    return content


def write_json(path: Path, content: object) -> None:
    """Write readable JSON; numbers that are not finite become null."""
    path.write_text(json.dumps(_finite(content), indent=2) + "\n", "utf-8")


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def write_table(path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()) -> None:
    """Write rows as CSV, what is not a number empty; `columns` name those of a table without rows."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else list(columns))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: "" if value != value else value for key, value in row.items()})
