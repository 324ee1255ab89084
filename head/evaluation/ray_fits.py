"""The fits of an evaluation as tasks of Ray, on this machine or on the nodes of a cluster.

A fit whose process or node dies is run again, elsewhere; it appears whole in the evaluation's folder,
which all nodes share, or not at all. What travels are the counts, once to each node, and requests.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

import mmap_st
from mmap_st.errors import EvaluationError, MmapError, RequestError, counted, first_line, printable
from mmap_st.extract.engine import ActorPlan, RayRequest, plan_actors, usable_cores
from mmap_st.extract.store import FeatureStore, check_present
from mmap_st.files import absolute, absolute_place
from mmap_st.head.evaluation.fold_jobs import FoldJob, SharedInputs, device_of, fit_fold
from mmap_st.head.runs import wait_for_writer
from mmap_st.progress import ProgressCallback
from mmap_st.ray_cluster import connected_ray, how_it_died, resources_of_nodes
from mmap_st.urls import Place

_LOG = logging.getLogger(__name__)
#: How often the process of a fit may die.
_MOST_DEATHS = 6
#: How long the process of a task may outlive its node, and hold the lock of what it writes.
_OUTLIVES_S = 180.0


def finished_on_ray(
    request: RayRequest, shared: SharedInputs, jobs: Sequence[FoldJob], tell: ProgressCallback
) -> Iterator[tuple[FoldJob, str]]:
    """Run jobs, and yield each when it is done, with the reason if it cannot be.

    Parameters
    ----------
    request
        Where Ray is, and how many fits are to run at a time; None: all for which it has room.

    Raises
    ------
    MissingDependencyError
        If Ray is not installed.
    RequestError
        If no cluster answers.
    EvaluationError
        If a fit's process died again and again.
    """
    shared = replace(shared, store=absolute_place(shared.store))
    contents = pickle.dumps(shared, pickle.HIGHEST_PROTOCOL)
    with connected_ray(request.address, usable_cores(), len(contents)) as ray:
        nodes = resources_of_nodes(ray)
        wanted = replace(request, actors=request.actors or len(jobs))
        size = plan_actors(wanted, nodes, None, device_of(jobs), len(jobs))
        if not any(size.fits(node) for node in nodes):
            _LOG.warning(
                "no node of the cluster has %s: fits wait for one, which an autoscaler may bring",
                printable(str(size)),
            )
        task = ray.remote(run_fit).options(
            num_cpus=size.cpus,
            num_gpus=size.gpus,
            memory=_memory(nodes, shared.fit_bytes),
            max_retries=0,  # here, with a sentence of what is run again
            scheduling_strategy="SPREAD",
        )
        tell(f"{counted(len(jobs), 'fit')} on Ray, {size} each")
        yield from _in_turn(ray, task, ray.put(contents), size, jobs, shared.store)


def _memory(nodes: Sequence[Mapping[str, float]], fit_bytes: int) -> int:
    """What a fit asks for, and never more than the largest node has: it would wait forever."""
    largest = max((node.get("memory", 0.0) for node in nodes), default=0.0)
    return min(fit_bytes, int(0.9 * largest)) if largest else fit_bytes


@dataclass(frozen=True)
class Origin:
    """Where an evaluation was started.

    Attributes
    ----------
    version
        Of this package there.
    folder
        From which relative paths lead.
    imports_from_folder
        Whether modules are imported from there too.
    """

    version: str
    folder: str
    imports_from_folder: bool

    @classmethod
    def here(cls) -> Origin:
        """Of this process."""
        folder = os.getcwd()
        return cls(mmap_st.__version__, folder, folder in map(os.path.abspath, sys.path))

    def take_over(self) -> None:
        """Let paths and imports of this process lead where they do there.

        Raises
        ------
        RequestError
            If this package is of another version here.
        """
        if self.version != mmap_st.__version__:
            raise RequestError(
                f"mmap-st is {mmap_st.__version__} on {platform.node()} and {self.version} where the run was"
                " started; install one version on all machines."
            )
        if not self.imports_from_folder:  # Ray does at first
            sys.path[:] = [path for path in sys.path if path != self.folder]
        with suppress(OSError):  # of this machine alone; paths from the root are right all the same
            os.chdir(self.folder)


def run_fit(shared: Sequence[Any], pickled: bytes, origin: Origin, threads: int) -> str:
    """What a task of Ray runs: one fit; the reason if it cannot be done, else nothing.

    Parameters
    ----------
    shared
        A reference to `SharedInputs`, pickled; in a sequence, so that Ray does not read it for every task.
    pickled
        The job.
    """
    try:
        origin.take_over()
        job: FoldJob = pickle.loads(pickled)  # noqa: S301 - by the evaluation
        inputs = _inputs_of(shared[0])
        store = FeatureStore.open(inputs.store)
        wait_for_writer(job.out, _OUTLIVES_S)
    except MmapError as error:
        return first_line(error)
    if job.done:  # by a process that outlived its node
        return ""
    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        return fit_fold(inputs, store, job, lambda text: None)


@lru_cache(maxsize=1)  # a process fits for one evaluation at a time
def _inputs_of(reference: Any) -> SharedInputs:
    import ray

    inputs: SharedInputs = pickle.loads(ray.get(reference))  # noqa: S301 - by the evaluation
    return inputs


def _in_turn(
    ray: Any, task: Any, shared: Any, size: ActorPlan, jobs: Sequence[FoldJob], store: Place
) -> Iterator[tuple[FoldJob, str]]:
    """Hand to Ray as many jobs as are to run at a time, and yield each when it is done."""
    waiting = deque(jobs)
    running: dict[Any, FoldJob] = {}
    deaths: Counter[Path] = Counter()
    try:
        while waiting or running:
            while waiting and len(running) < size.number:
                job = waiting.popleft()
                pickled = pickle.dumps(replace(job, out=absolute(job.out)))
                running[task.remote([shared], pickled, Origin.here(), size.cpus)] = job
            (done, *_), _ = ray.wait(list(running))
            job = running.pop(done)
            try:
                reason = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                check_present(store)
                deaths[job.out] += 1
                how = f"the process of {job.name} {how_it_died(ray, error)}"
                if deaths[job.out] >= _MOST_DEATHS:
                    raise EvaluationError(
                        f"{how}, {counted(deaths[job.out], 'time')}; look whether memory ran out, and run"
                        " the same command again: finished folds are kept."
                    ) from error
                _LOG.warning("%s; the fit is run again", printable(how))
                waiting.append(job)
            else:
                yield job, reason
    except BaseException:
        # Fits that run are given up: what they have not finished is done again by the next run.
        for reference in running:
            with suppress(ray.exceptions.RayError, ValueError):
                ray.cancel(reference, force=True)
        raise
