"""Run the fits of an evaluation: in processes, as many as cores and memory allow, or on Ray; once each."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from mmap_st.errors import EvaluationError, MmapError, counted, first_line
from mmap_st.extract.engine import RayRequest, free_memory, usable_cores
from mmap_st.extract.store import FeatureStore, check_present
from mmap_st.head.evaluation.fold_jobs import FoldJob, SharedInputs, device_of, fit_fold
from mmap_st.head.networks import resolved_device
from mmap_st.progress import ProgressCallback
from mmap_st.worker_processes import end_with_parent, start_method, take_environment, without_main_module


def run_jobs(
    shared: SharedInputs,
    jobs: Sequence[FoldJob],
    tell: ProgressCallback,
    requested: int | None = None,
    ray: RayRequest | None = None,
) -> dict[Path, str]:
    """Run the jobs that are not done.

    Parameters
    ----------
    requested
        How many run at a time; None: as many as cores and memory allow.
    ray
        Where Ray is, which then runs them; None: processes of this machine do.

    Returns
    -------
    Folders of the jobs that cannot be fitted or scored, with the reason.

    Raises
    ------
    EvaluationError
        If a process died.
    """
    left = [job for job in jobs if not job.done]
    if not left:
        return {}
    if ray is None:
        parallel = parallel_jobs(requested, len(jobs), device_of(jobs), shared.fit_bytes)
        results = _finished_here(shared, left, parallel, tell)
    else:
        from mmap_st.head.evaluation.ray_fits import finished_on_ray

        results = finished_on_ray(ray, shared, left, jobs, tell)
    began = time.monotonic()
    failed = {}
    for number, (job, reason) in enumerate(results, start=1):
        if reason:
            failed[job.out] = reason
        seconds = (time.monotonic() - began) / number * (len(left) - number)
        done = len(jobs) - len(left) + number
        tell(f"{job.name} done; {done} of {counted(len(jobs), 'fit')}, {_minutes(seconds)} left")
    return failed


def parallel_jobs(requested: int | None, jobs: int, device: str, fit_bytes: int) -> int:
    """How many fits run at a time: as requested, or else as cores and half of the free memory allow.

    A head that trains on a graphics card has it for itself.

    Parameters
    ----------
    jobs
        How many there are, finished or not: a run that resumes computes with as many threads.
    device
        Where their heads train: ``auto``, ``cpu`` or ``cuda``.
    fit_bytes
        Memory that each takes.
    """
    if requested is not None:
        return max(1, min(requested, jobs))
    if resolved_device(device) != "cpu":
        return 1
    return max(1, min(usable_cores(), jobs, int(0.5 * free_memory() / fit_bytes)))


def _finished_here(
    shared: SharedInputs, jobs: Sequence[FoldJob], parallel: int, tell: ProgressCallback
) -> Iterator[tuple[FoldJob, str]]:
    """Run jobs, and yield each when it is done, with the reason if it cannot be."""
    if parallel <= 1:
        store = FeatureStore.open(shared.store)
        for job in jobs:
            yield job, fit_fold(shared, store, job, tell)
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
    return fit_fold(_worker["shared"], _worker["store"], job, lambda text: None)


def _minutes(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {seconds:.0f} s"
