"""Workers that are actors of Ray, on this machine or on the nodes of a cluster.

An actor embeds in a thread of its own, by the code that a process of this machine runs, and keeps what it has
to say until it is asked. Whoever hands out slides has one question outstanding with each actor. Windows are
read where they are embedded: what travels are plans and events, a few kB a slide.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from mmap_st.errors import RequestError, printable
from mmap_st.extract.engine.encoder_request import EncoderRequest
from mmap_st.extract.engine.planning import ExtractOptions, Planned, usable_cores
from mmap_st.extract.engine.workers.ray_request import ActorPlan, RayRequest, plan_actors
from mmap_st.extract.engine.workers.worker import Event, Failed, WorkerTask, work
from mmap_st.ray_cluster import Origin, connected_ray, how_it_died, resources_of_nodes

_LOG = logging.getLogger(__name__)
#: How long an actor waits for something to say before it says that there is nothing.
_QUIET_S = 5.0
#: After this long without an actor, the user is told what is waited for.
_PENDING_S = 30.0


class _Said(NamedTuple):
    """Where an actor is, and what it had to say; None after that: it has ended."""

    host: str
    pid: int
    events: list[Event | None]


class EmbeddingActor:
    """What runs in an actor; the engine calls its methods, in other threads than the one that embeds.

    Parameters
    ----------
    task
        See `WorkerTask.to_bytes`.
    origin
        Where the run was started.
    cpus, together
        CPUs of this actor, and how many actors there are.
    level
        From which on it passes on what is logged.
    """

    def __init__(self, task: bytes, origin: Origin, cpus: int, together: int, level: int) -> None:
        self._task, self._origin, self._cpus, self._together = task, origin, cpus, together
        origin.take_over_imports()
        self._said: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._plans: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._stopping = threading.Event()
        threading.Thread(target=self._run, args=(level,), name="embed", daemon=True).start()

    def events(self) -> _Said:
        """What there is to say, waiting for it for a while."""
        events: list[Event | None] = []
        with suppress(queue.Empty):
            events.append(self._said.get(timeout=_QUIET_S))
            while True:
                events.append(self._said.get_nowait())
        return _Said(platform.node(), os.getpid(), events)

    def give(self, plan: bytes) -> None:
        """Take a plan, or None; pickled, since arrays that Ray hands over cannot be written to."""
        self._plans.put(plan)

    def stop(self) -> None:
        """End after the batch that is being embedded."""
        self._stopping.set()
        self._plans.put(pickle.dumps(None))

    def _run(self, level: int) -> None:
        try:
            work(self._made_task, self._said.put, self._next_plan, self._stopping.is_set, level)
        finally:
            self._said.put(None)

    def _next_plan(self) -> Planned | None:
        plan: Planned | None = pickle.loads(self._plans.get())  # noqa: S301 - by the engine
        return plan

    def _made_task(self) -> WorkerTask:
        self._origin.check_version()
        task: WorkerTask = pickle.loads(self._task)  # noqa: S301 - by the engine
        together = max(1, min(self._together, usable_cores() // self._cpus))
        options = replace(task.options, processes=together, workers=self._cpus * together)
        return replace(task, options=options, threads=min(self._cpus, usable_cores()))


@dataclass(eq=False)
class _Actor:
    """An actor, and the question that is outstanding with it."""

    number: int
    handle: Any
    asked: Any
    host: str = ""
    pid: int = 0
    how: str = "died"

    @property
    def name(self) -> str:
        return f"actor {self.number}" + (f" (process {self.pid} on {self.host})" if self.host else "")

    def send(self, plan: Planned | None) -> None:
        if plan is not None:
            plan = plan.absolute()  # actors are not where this process is
        self.handle.give.remote(pickle.dumps(plan))

    def death(self) -> str:
        return self.how


class Actors:
    """See `Workforce`: actors of a cluster to which this process is connected.

    Parameters
    ----------
    request
        The encoder; its device is ``auto``, ``cpu`` or ``cuda``.
    ray
        The module.
    size
        How many actors, and what each asks for.
    store
        Path of the feature store, on a folder that all nodes share.
    options
        Threads and memory are set by what an actor asks for.
    """

    everyone = False
    advice = "give each actor more of a node (--workers, --gpus-per-actor)"

    def __init__(
        self, request: EncoderRequest, ray: Any, size: ActorPlan, store: Path, options: ExtractOptions
    ) -> None:
        self._ray, self._size, self.number = ray, size, size.number
        weights = None if request.weights is None else request.weights.absolute()
        request = replace(request, device="cuda" if size.gpus else "cpu", weights=weights)
        self._task = ray.put(WorkerTask(request, store.absolute(), options, size.cpus).to_bytes())
        # Four threads: for the question that is outstanding, for what is handed over meanwhile, and to spare.
        self._actor = ray.remote(EmbeddingActor).options(
            num_cpus=size.cpus,
            num_gpus=size.gpus,
            max_concurrency=4,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )
        self._waiting_since: float | None = time.monotonic()

    def start(self, place: int) -> _Actor:
        level = logging.getLogger("mmap_st").getEffectiveLevel()
        handle = self._actor.remote(
            self._task,
            Origin.here(),
            self._size.cpus,
            self._size.number,
            level,
        )
        return _Actor(place + 1, handle, handle.events.remote())

    def listen(self, links: Sequence[_Actor], seconds: float) -> Iterator[tuple[_Actor, Event | None]]:
        actors = {link.asked: link for link in links}
        answered, _ = self._ray.wait(list(actors), timeout=seconds) if actors else ([], [])
        self._say_if_none(links)
        if answered:  # and whichever have answered beside it
            answered, _ = self._ray.wait(list(actors), num_returns=len(actors), timeout=0)
        for asked in answered:
            actor = actors[asked]
            try:
                said: _Said = self._ray.get(asked)
            except self._ray.exceptions.RayError as error:
                actor.how = self._how(error)
                if getattr(error, "actor_init_failed", False):
                    yield actor, Failed(RequestError(f"{actor.name} {actor.how}."))
                self._kill(actor)
                yield actor, None
                continue
            actor.host, actor.pid = said.host, said.pid
            if None not in said.events:
                actor.asked = actor.handle.events.remote()
            for event in said.events:
                yield actor, self._placed(actor, event)

    def stop(self, links: Sequence[_Actor]) -> None:
        for link in links:
            link.handle.stop.remote()

    def end(self, links: Sequence[_Actor], *, at_once: bool) -> None:
        for link in links:
            self._kill(link)

    def _kill(self, actor: _Actor) -> None:
        """One that cannot be reached may live on for a moment; its slides stay locked as long."""
        with suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.kill(actor.handle)

    def _how(self, error: Exception) -> str:
        """How an actor died, in a few words of what Ray says in many."""
        if getattr(error, "actor_init_failed", False):
            reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
            return f"cannot start ({reason}); install this version of mmap-st and what it needs on all nodes"
        return how_it_died(self._ray, error)

    def _placed(self, actor: _Actor, event: Event | None) -> Event | None:
        """What an actor says of its own machine, with that machine's name where it is another one."""
        if isinstance(event, Failed) and actor.host != platform.node():
            kind = RequestError if isinstance(event.error, RequestError) else type(event.error)
            with suppress(TypeError):
                return Failed(kind(f"{actor.name}: {event.error}"))
        return event

    def _say_if_none(self, links: Sequence[_Actor]) -> None:
        """Say once what is waited for, where no actor has begun for a while."""
        if any(link.host for link in links):
            self._waiting_since = time.monotonic()
        elif self._waiting_since is not None and time.monotonic() - self._waiting_since > _PENDING_S:
            _LOG.warning(
                "no actor runs: each asks Ray for %s, and waits for a node that has them",
                printable(str(self._size)),
            )
            self._waiting_since = None


@contextmanager
def open_actors(
    ray_request: RayRequest,
    request: EncoderRequest,
    store: Path,
    options: ExtractOptions,
    slides: int,
) -> Iterator[Actors]:
    """Connect to Ray, or start it here; what was started or connected is left in the end.

    Parameters
    ----------
    slides
        How many there are at most.

    Raises
    ------
    MissingDependencyError
        If Ray is not installed.
    RequestError
        If no cluster answers, or it has nothing for an actor.
    """
    cpus = max(usable_cores(), (options.workers or 1) * (ray_request.actors or 1))
    with connected_ray(ray_request.address, cpus) as ray:
        size = plan_actors(ray_request, resources_of_nodes(ray), options.workers, request.device, slides)
        yield Actors(request, ray, size, store, options)
