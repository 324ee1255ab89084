"""What an evaluation was asked for, kept beside its results so that no other is mixed in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmap_st.data.counts import Counts
from mmap_st.data.folds import Fold
from mmap_st.errors import RequestError
from mmap_st.extract.recipe_json import sha256_of_json
from mmap_st.extract.store import FeatureStore
from mmap_st.head.base import settings_values
from mmap_st.head.request import FitRequest
from mmap_st.head.run_folder import read_json, write_json

REQUEST = "request.json"
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class EvaluateRequest:
    """A cross-validation of one head.

    Attributes
    ----------
    fit
        What each fold fits; its split and seed are the fold's.
    folds
        See `mmap_st.data.folds.make_folds`.
    seeds
        Each fold is fitted once with each.
    jobs
        Fits that run side by side; None: as many as cores and memory allow.
    ablate
        Whether the head is evaluated without each of its parts too, see
        `mmap_st.head.evaluation.ablations`.
    variants
        Keys of the ablations to evaluate; None: all.
    """

    fit: FitRequest
    folds: str = "patient"
    seeds: tuple[int, ...] = (0,)
    jobs: int | None = None
    ablate: bool = False
    variants: tuple[str, ...] | None = None


def describe(
    request: FitRequest,
    folds: Sequence[Fold],
    store: FeatureStore,
    mpps: Sequence[float],
    counts: Mapping[str, Counts],
) -> dict[str, Any]:
    """All that the numbers of an evaluation depend on, but seeds: those may be added later."""
    names = list(counts)
    embeddings = {
        name: [store.slide(name).complete(request.encoder)[mpp].recipe_sha256 for mpp in mpps]
        for name in names
    }
    panel = Path(request.panel)
    return {
        "format_version": _FORMAT_VERSION,
        "encoder": request.encoder,
        "head": request.method.name,
        "settings": settings_values(request.settings),
        "genes": panel.read_text("utf-8").split() if panel.is_file() else request.panel,
        "gene_set": request.gene_set,
        "protocol": request.protocol.name,
        "magnifications": list(mpps),
        "folds": {fold.name: list(fold.split.test) for fold in folds},
        "slides": names,
        "embeddings_sha256": sha256_of_json(embeddings),
        "counts_sha256": _sha256_of(counts),
    }


def check_request(out: Path, asked: Mapping[str, Any]) -> None:
    """Begin an evaluation's folder, or go on in one that was asked for the same.

    Raises
    ------
    RequestError
        If the folder holds something else, or an evaluation of another request.
    """
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file; name a folder.")
    file = out / REQUEST
    if file.is_file():
        before = read_json(file)
        different = [key for key in {**before, **asked} if before.get(key) != asked.get(key)]
        if different:
            raise RequestError(
                f"{out} holds an evaluation of another request ({_shown(different, before, asked)}); name"
                " another folder."
            )
        return
    if out.is_dir() and any(not inner.name.startswith(".") for inner in out.iterdir()):
        raise RequestError(f"--out {out} holds other things than an evaluation; name another folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        draft = out / f".{REQUEST}.unfinished"
        write_json(draft, asked)
        draft.replace(file)
    except OSError as error:
        raise RequestError(
            f"--out {out} cannot be written ({error.strerror}); name another folder."
        ) from error


def _shown(different: Sequence[str], before: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Each difference, values where they are short enough to read."""
    parts = []
    for key in different:
        values = [str(before.get(key)), str(asked.get(key))]
        short = all(len(value) <= 40 for value in values)
        parts.append(f"{key}: {values[0]}, now {values[1]}" if short else key)
    return "; ".join(parts)


def _sha256_of(counts: Mapping[str, Counts]) -> str:
    digest = hashlib.sha256()
    for name, table in counts.items():
        digest.update("\n".join([name, table.values, *table.ids, *table.genes]).encode())
        for part in (table.matrix.indptr, table.matrix.indices, table.matrix.data):
            digest.update(part.tobytes())
    return digest.hexdigest()
