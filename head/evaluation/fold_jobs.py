"""The fits of an evaluation: one for each fold and seed, and what they share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.linalg import LinAlgError

from mmap_st.data import Cohort, Counts, Fold
from mmap_st.errors import MmapError, WriteError, first_line
from mmap_st.extract.store import FeatureStore, encode_name
from mmap_st.head.runs import FOLDS, METRICS, FitRequest, fit_split, only_run_writer, writing
from mmap_st.progress import ProgressCallback
from mmap_st.urls import Place

# Of a process, without its copy of all counts: libraries, blocks of embeddings, sums of a closed-form fit.
_PROCESS_BYTES = 3_000_000_000
#: How long a process that fits may outlive whoever started it.
_OUTLIVES_S = 180.0


@dataclass(frozen=True)
class FoldJob:
    """One fit: a fold, a seed, the folder of its run, and the name of the row that it is for."""

    fold: Fold
    request: FitRequest
    out: Path
    row: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.row}{', ' if self.row else ''}fold {self.fold.name}, seed {self.request.seed}"

    @property
    def done(self) -> bool:
        """Whether its run is finished: a run's folder appears whole, or not at all."""
        return (self.out / METRICS).is_file()


@dataclass(frozen=True)
class SharedInputs:
    """What all jobs share: the cohort, where its store is, and the counts in the store's order of spots."""

    cohort: Cohort
    store: Place
    counts: Mapping[str, Counts]

    @cached_property
    def counts_sha256(self) -> str:
        """Of all counts, by slide."""
        digest = hashlib.sha256()
        for name, table in self.counts.items():
            digest.update("\n".join([name, table.values, *table.ids, *table.genes]).encode())
            # Of 64 bits, as they were held when the first evaluations were made.
            for places in (table.matrix.indptr, table.matrix.indices):
                digest.update(places.astype(np.int64).tobytes())
            for part in (table.matrix.data, table.measured):
                digest.update(part.tobytes())
        return digest.hexdigest()

    @property
    def counts_bytes(self) -> int:
        """Size of all counts."""
        matrices = [table.matrix for table in self.counts.values()]
        return sum(part.nbytes for m in matrices for part in (m.data, m.indices, m.indptr))

    @property
    def fit_bytes(self) -> int:
        """Memory that a process needs for one fit."""
        return _PROCESS_BYTES + self.counts_bytes


def plan_jobs(
    request: FitRequest, folds: Sequence[Fold], seeds: Sequence[int], out: Path, row: str = ""
) -> list[FoldJob]:
    """One job per fold and seed."""
    return [
        FoldJob(
            fold,
            replace(request, seed=seed),
            out / FOLDS / encode_name(fold.name) / f"seed{seed}",
            row,
        )
        for seed in seeds
        for fold in folds
    ]


def fit_fold(shared: SharedInputs, store: FeatureStore, job: FoldJob, tell: ProgressCallback) -> str:
    """Run one job; the reason if its fold cannot be fitted or scored, else nothing.

    A process that outlived the run that started it, or its node, may still be writing it: it is waited for.
    """
    with writing(job.out):
        job.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with only_run_writer(job.out, _OUTLIVES_S):
            if not job.done:
                fit_split(
                    shared.cohort,
                    store,
                    job.request,
                    job.fold.split,
                    shared.counts,
                    job.out,
                    lambda text: tell(f"{job.name}: {text}"),
                )
    except WriteError:
        raise  # not the fold's fault
    except (MmapError, LinAlgError, MemoryError, torch.OutOfMemoryError) as error:
        return first_line(error)
    except Exception as error:
        if not job.request.method.code:
            raise
        return f"the head {job.request.method.name} fails ({type(error).__name__}: {first_line(error)})"
    return ""


def device_of(jobs: Sequence[FoldJob]) -> str:
    """What the jobs' heads ask for: ``cpu``, ``auto`` or ``cuda``, whichever of them comes last."""
    asked = {getattr(job.request.settings, "device", "cpu") for job in jobs}
    return max(asked, key=("cpu", "auto", "cuda").index)
