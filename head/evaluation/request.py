"""What an evaluation is asked for, and all that its numbers depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmap_st
from mmap_st.data.folds import Fold
from mmap_st.extract.recipe_json import sha256_of_json
from mmap_st.extract.store import FeatureStore
from mmap_st.head.base import ALGORITHM_VERSION, settings_values
from mmap_st.head.request import FitRequest

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
    counts_sha256: str,
    patients: Mapping[str, str | None],
) -> dict[str, Any]:
    """All that the numbers of an evaluation depend on, but seeds: those may be added later."""
    embeddings = {
        name: [store.slide(name).complete(request.encoder)[mpp].recipe_sha256 for mpp in mpps]
        for name in patients
    }
    panel = Path(request.panel)
    by_file = f"file of sha256 {hashlib.sha256(panel.read_bytes()).hexdigest()}" if panel.is_file() else ""
    return {
        "format_version": _FORMAT_VERSION,
        "package_version": mmap_st.__version__,
        "heads_version": ALGORITHM_VERSION,
        "encoder": request.encoder,
        "head": request.method.name,
        **({"head_code_sha256": request.method.code} if request.method.code else {}),
        "settings": settings_values(request.settings),
        "genes": by_file or request.panel,
        "gene_set": request.gene_set,
        "protocol": request.protocol.name,
        "magnifications": list(mpps),
        "folds": {fold.name: list(fold.split.test) for fold in folds},
        "patients": dict(patients),
        "embeddings_sha256": sha256_of_json(embeddings),
        "counts_sha256": counts_sha256,
    }
