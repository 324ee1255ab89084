"""The fits of an evaluation as tasks of Ray, on this machine or on the nodes of a cluster.

A fit whose process or node dies is run again, elsewhere; it appears whole in the evaluation's folder, which
all nodes share, or not at all. What travels are the counts, once to each node, and requests.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_limits

from mmap_st.errors import (
    EvaluationError,
    HeadError,
    MmapError,
    RequestError,
    WriteError,
    counted,
    first_line,
    printable,
)
from mmap_st.extract.engine import ActorPlan, RayRequest, plan_actors, usable_cores
from mmap_st.extract.store import FeatureStore
from mmap_st.files import absolute, absolute_place
from mmap_st.head.evaluation.fold_jobs import FoldJob, SharedInputs, device_of, fit_fold
from mmap_st.progress import ProgressCallback
from mmap_st.ray_cluster import Origin, connected_ray, how_it_died, resources_of_nodes

_LOG = logging.getLogger(__name__)
#: How often a fit is begun whose process dies.
_MOST_RUNS = 6
#: How long files that another machine wrote may take to be seen here.
_SEEN_AFTER_S = 30.0


def finished_on_ray(
    request: RayRequest,
    shared: SharedInputs,
    left: Sequence[FoldJob],
    jobs: Sequence[FoldJob],
    tell: ProgressCallback,
) -> Iterator[tuple[FoldJob, str]]:
    """Run jobs, and yield each when it is done, with the reason if it cannot be.

    Parameters
    ----------
    request
        Where Ray is, and how many fits are to run at a time; None: all for which it has room.
    left
        What is to be run.
    jobs
        All, finished or not: a run that resumes computes with as many threads.

    Raises
    ------
    MissingDependencyError
        If Ray is not installed.
    RequestError
        If no cluster answers, or a node cannot do what fits need.
    EvaluationError
        If a fit's process died again and again, or its result is not where it should be.
    """
    if (
        here_only := next((job.request.method for job in left if job.request.method.local), None)
    ) is not None:
        raise HeadError(
            f"the head {here_only.name} is registered in this process only, and fits on Ray run in others:"
            " write it to a file that all nodes see, and give FILE.py:NAME."
        )
    shared = replace(shared, store=absolute_place(shared.store))
    with connected_ray(request.address, usable_cores(), shared.counts_bytes) as ray:
        nodes = resources_of_nodes(ray)
        sizes = {device: _size(request, nodes, device, shared, jobs) for device in {*map(_device, left)}}
        for size in sizes.values():
            _say_if_none_fits(size, nodes)
            tell(f"fits on Ray: {size} each")
        # A process for each: one that used a GPU keeps some of it, and a user's own tasks get none of ours.
        task = ray.remote(max_calls=1)(run_fit)
        tasks = {
            device: task.options(
                num_cpus=size.actor.cpus,
                num_gpus=size.actor.gpus,
                memory=size.memory,
                max_retries=0,  # here, with a sentence of what is run again
                scheduling_strategy="SPREAD",
            )
            for device, size in sizes.items()
        }
        reference = ray.put(pickle.dumps(shared, pickle.HIGHEST_PROTOCOL))

        def start(job: FoldJob) -> Any:
            actor = sizes[_device(job)].actor
            pickled = pickle.dumps(replace(job, out=absolute(job.out)))
            return tasks[_device(job)].remote([reference], pickled, Origin.here(), actor.cpus, actor.gpus > 0)

        yield from _in_turn(ray, start, left, request.actors or len(left))


@dataclass(frozen=True)
class _Size:
    """What each fit of a kind asks of Ray, memory in bytes."""

    actor: ActorPlan
    memory: int

    def fits(self, node: Mapping[str, float]) -> bool:
        return self.actor.fits(node) and node.get("memory", self.memory) >= self.memory

    def __str__(self) -> str:
        return f"{self.actor}, {self.memory / 1e9:.2g} GB"


def _device(job: FoldJob) -> str:
    return device_of([job])


def _size(
    request: RayRequest,
    nodes: Sequence[Mapping[str, float]],
    device: str,
    shared: SharedInputs,
    jobs: Sequence[FoldJob],
) -> _Size:
    """CPUs as there are for all fits that can run at a time; GPUs for heads that train on them alone."""
    if device == "cpu":
        request = replace(request, gpus_per_actor=0.0)
    single = plan_actors(replace(request, actors=1), nodes, 1, device, 1)
    able = [node for node in nodes if single.fits(node)] or list(nodes)
    memory = _memory(able, shared.fit_bytes)
    room = sum(_room(node, single, memory) for node in able)
    together = max(1, min(request.actors or len(jobs), len(jobs), room))
    return _Size(plan_actors(replace(request, actors=together), nodes, None, device, together), memory)


def _room(node: Mapping[str, float], single: ActorPlan, memory: int) -> int:
    """How many fits of one CPU a node has room for."""
    by_cpus, by_memory = int(node.get("CPU", 0)), int(node.get("memory", 1e30) / memory)
    by_gpus = int(node.get("GPU", 0) / single.gpus + 1e-9) if single.gpus else by_cpus
    return min(by_cpus, by_memory, by_gpus)


def _memory(nodes: Sequence[Mapping[str, float]], fit_bytes: int) -> int:
    """What a fit asks for, and never more than the largest node has: it would wait forever."""
    largest = max((node.get("memory", 0.0) for node in nodes), default=0.0)
    return min(fit_bytes, int(0.9 * largest)) if largest else fit_bytes


def _say_if_none_fits(size: _Size, nodes: Sequence[Mapping[str, float]]) -> None:
    if not any(size.fits(node) for node in nodes):
        _LOG.warning(
            "no node of the cluster has %s: fits wait for one, which an autoscaler may bring",
            printable(str(size)),
        )


class _Told(NamedTuple):
    """What a fit says: the machine, and the reason if the fold cannot be fitted, else nothing."""

    host: str
    reason: str


def run_fit(shared: Sequence[Any], pickled: bytes, origin: Origin, threads: int, on_gpu: bool) -> _Told:
    """What a task of Ray runs, in a process of its own: one fit.

    Parameters
    ----------
    shared
        A reference to `SharedInputs`, pickled; in a sequence, so that a process that waits does not hold it.
    pickled
        The job.
    threads
        To compute with.
    on_gpu
        Whether the fit has a GPU, or a part of one.

    Raises
    ------
    RequestError
        If this machine cannot do what fits need.
    """
    import ray

    if not on_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all of them to whoever asks for none
    host = platform.node()
    origin.check_version()
    origin.take_over_imports()
    with suppress(OSError):  # of the other machine alone; paths from the root are right all the same
        os.chdir(origin.folder)
    try:
        job: FoldJob = pickle.loads(pickled)  # noqa: S301 - by the evaluation
    except MmapError as error:  # a user's head that cannot be loaded
        return _Told(host, f"on {host}: {first_line(error)}")
    try:
        inputs: SharedInputs = pickle.loads(ray.get(shared[0]))  # noqa: S301 - by the evaluation
        store = FeatureStore.open(inputs.store)
        torch.set_num_threads(threads)
        with threadpool_limits(threads):
            return _Told(host, fit_fold(inputs, store, job, lambda text: None))
    except WriteError as error:
        raise WriteError(f"on {host}: {error}") from error
    except MmapError as error:  # a fold's own faults are reasons
        raise RequestError(f"on {host}: {error}") from error


def _in_turn(
    ray: Any, start: Callable[[FoldJob], Any], jobs: Sequence[FoldJob], together: int
) -> Iterator[tuple[FoldJob, str]]:
    """Hand to Ray as many jobs as are to run at a time, and yield each when it is done."""
    waiting = deque(jobs)
    running: dict[Any, FoldJob] = {}
    runs: Counter[Path] = Counter()
    try:
        while waiting or running:
            while waiting and len(running) < together:
                job = waiting.popleft()
                runs[job.out] += 1
                running[start(job)] = job
            (done, *_), _ = ray.wait(list(running))
            job = running.pop(done)
            try:
                told: _Told = ray.get(done)
            except _deaths(ray) as error:
                how = f"the process of {job.name} {how_it_died(ray, error)}"
                if runs[job.out] >= _MOST_RUNS:
                    times = counted(_MOST_RUNS, "run")
                    raise EvaluationError(
                        f"{how} ({times}); look whether memory ran out, and run the same command again:"
                        " finished folds are kept."
                    ) from error
                _LOG.warning("%s; the fit is run again", printable(how))
                waiting.append(job)
            except ray.exceptions.RayError as error:
                raise _as_told(ray, job, error) from error
            else:
                if not told.reason:
                    _check_seen(job, told.host)
                yield job, told.reason
    except BaseException:
        # Fits that run are given up: what they have not finished is done again by the next run.
        for reference in running:
            with suppress(ray.exceptions.RayError, ValueError):
                ray.cancel(reference, force=True)
        raise


def _deaths(ray: Any) -> tuple[type[Exception], ...]:
    """What Ray raises where a task's process or machine is gone."""
    known = ray.exceptions
    return known.WorkerCrashedError, known.NodeDiedError, known.OutOfMemoryError, known.LocalRayletDiedError


def _as_told(ray: Any, job: FoldJob, error: Exception) -> BaseException:
    """What a task raised, as it raised it where that can be told; else as one sentence."""
    cause = getattr(error, "cause", None)
    said = first_line(cause or error)
    if "failed to import" in said:
        return EvaluationError(
            f"{job.name} cannot be fitted on a node of the cluster ({said.rstrip('.')}); install this"
            " version of mmap-st and what it needs on all nodes."
        )
    if isinstance(cause, Exception) and not isinstance(cause, ray.exceptions.RayError):
        return cause
    return EvaluationError(f"{job.name} failed on Ray ({said.rstrip('.')}); fit it with --engine local.")


def _check_seen(job: FoldJob, host: str) -> None:
    """Believe that a fit is done where it is seen here; disks that machines share may take a while.

    Raises
    ------
    EvaluationError
        If it is not.
    """
    last = time.monotonic() + _SEEN_AFTER_S
    while not job.done:
        if time.monotonic() > last:
            raise EvaluationError(
                f"{job.name} was fitted on {host}, and {job.out} is not seen here; give --out in a"
                " folder that all nodes share."
            )
        time.sleep(0.5)
