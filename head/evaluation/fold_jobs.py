"""The fits of an evaluation, in parallel where cores and memory allow; finished ones are never repeated."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.linalg import LinAlgError
from threadpoolctl import threadpool_limits

from mmap_st.data import Cohort, Counts, Fold
from mmap_st.errors import EvaluationError, MmapError, WriteError, counted, first_line
from mmap_st.extract.engine import free_memory, usable_cores
from mmap_st.extract.store import FeatureStore, check_present, encode_name
from mmap_st.head.networks import resolved_device
from mmap_st.head.runs import FOLDS, METRICS, FitRequest, fit_split, writing
from mmap_st.progress import ProgressCallback
from mmap_st.urls import Place
from mmap_st.worker_processes import end_with_parent, start_method, take_environment, without_main_module

# Of a worker, without its copy of all counts: libraries, blocks of embeddings, sums of a closed-form fit.
_WORKER_BYTES = 3e9


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


def run_jobs(
    shared: SharedInputs, jobs: Sequence[FoldJob], parallel: int, tell: ProgressCallback
) -> dict[Path, str]:
    """Run the jobs that are not done.

    Returns
    -------
    Folders of the jobs that cannot be fitted or scored, with the reason.

    Raises
    ------
    EvaluationError
        If a process died.
    """
    left = [job for job in jobs if not job.done]
    began = time.monotonic()
    failed = {}
    for number, (job, reason) in enumerate(_finished(shared, left, parallel, tell), start=1):
        if reason:
            failed[job.out] = reason
        seconds = (time.monotonic() - began) / number * (len(left) - number)
        done = len(jobs) - len(left) + number
        tell(f"{job.name} done; {done} of {counted(len(jobs), 'fit')}, {_minutes(seconds)} left")
    return failed


def parallel_jobs(requested: int | None, jobs: int, settings: Any, counts_bytes: int) -> int:
    """How many fits run at a time: as requested, or else as cores and half of the free memory allow.

    A head that trains on a graphics card has it for itself.
    """
    if requested is not None:
        return max(1, min(requested, jobs))
    if resolved_device(getattr(settings, "device", "cpu")) != "cpu":
        return 1
    fit = int(0.5 * free_memory() / (_WORKER_BYTES + counts_bytes))
    return max(1, min(usable_cores(), jobs, fit))


def _finished(
    shared: SharedInputs, jobs: Sequence[FoldJob], parallel: int, tell: ProgressCallback
) -> Iterator[tuple[FoldJob, str]]:
    """Run jobs, and yield each when it is done, with the reason if it cannot be."""
    if parallel <= 1 or not jobs:
        store = FeatureStore.open(shared.store)
        for job in jobs:
            yield job, _fit(shared, store, job, tell)
        return
    with _pool(shared, parallel) as pool:
        tell(f"{counted(len(jobs), 'fit')}, {parallel} at a time")
        # As bytes: a user's code that cannot be loaded in a worker is then that fit's fault, and no more.
        pickled = [pickle.dumps(job) for job in jobs]
        with without_main_module():
            running: dict[Future[str], FoldJob] = {
                pool.submit(_fit_in_worker, one): job for one, job in zip(pickled, jobs, strict=True)
            }
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenProcessPool as error:
            check_present(shared.store)
            raise EvaluationError(
                "a fit's process died, perhaps because memory ran out; run the same command again with"
                " --jobs 1: finished folds are kept."
            ) from error


def _fit(shared: SharedInputs, store: FeatureStore, job: FoldJob, tell: ProgressCallback) -> str:
    """Run one job; the reason if its fold cannot be fitted or scored, else nothing."""
    with writing(job.out):
        job.out.parent.mkdir(parents=True, exist_ok=True)
    try:
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


@contextmanager
def _pool(shared: SharedInputs, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with this one, however it ends."""
    context = start_method("torch")
    threads = max(1, usable_cores() // workers)
    others = multiprocessing.active_children()
    with TemporaryDirectory() as folder:
        # In a file: a worker that dies before it has read its arguments would leave a parent that writes
        # them to it waiting forever.
        file = Path(folder) / "shared.pickle"
        with file.open("wb") as opened:
            pickle.dump(shared, opened, pickle.HIGHEST_PROTOCOL)
        pool = ProcessPoolExecutor(workers, context, _start_worker, (file, threads, dict(os.environ)))
        try:
            yield pool
        except BaseException:
            # Jobs that run are given up: what they have not finished is done again by the next run.
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        pool.shutdown()


# What a worker needs: set once when it starts, read by its jobs.
_worker: dict[str, Any] = {}


def _start_worker(file: Path, threads: int, environment: dict[str, str]) -> None:
    take_environment(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    end_with_parent()  # another run may take over the folder
    threadpool_limits(threads)
    torch.set_num_threads(threads)
    with file.open("rb") as opened:
        shared: SharedInputs = pickle.load(opened)  # noqa: S301 - by this program's own parent process
    _worker["shared"], _worker["store"] = shared, FeatureStore.open(shared.store)


def _fit_in_worker(pickled: bytes) -> str:
    try:
        job = pickle.loads(pickled)  # noqa: S301 - by this program's own parent process
    except MmapError as error:
        return first_line(error)
    return _fit(_worker["shared"], _worker["store"], job, lambda text: None)


def _minutes(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {seconds:.0f} s"
