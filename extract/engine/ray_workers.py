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
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import mmap_st
from mmap_st.errors import MissingDependencyError, RequestError, first_line, printable
from mmap_st.extract.engine.encoder_request import EncoderRequest
from mmap_st.extract.engine.pending import Planned
from mmap_st.extract.engine.plan import ExtractOptions, usable_cores
from mmap_st.extract.engine.ray_request import ActorPlan, RayRequest, plan_actors
from mmap_st.extract.engine.worker import Event, Failed, WorkerTask, work

_LOG = logging.getLogger(__name__)
#: How long an actor waits for something to say before it says that there is nothing.
_QUIET_S = 5.0
#: After this long without an actor, the user is told what is waited for.
_PENDING_S = 30.0
#: How long the head of a cluster may take to answer.
_ANSWER_S = 10.0
#: Ray's smallest, with room to spare: all that is ever put there are plans.
_OBJECTS_BYTES = 100 << 20
_SAID_HERE = "worker died or was killed|Raylet is terminated|marked dead|cannot be scheduled|memory pressure"
_QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}


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
    version
        Of this package, where it was made.
    cpus, together
        CPUs of this actor, and how many actors there are.
    level
        From which on it passes on what is logged.
    folder
        Where the run was started. Ray imports from there first; this actor does where the run did.
    """

    def __init__(
        self, task: bytes, version: str, cpus: int, together: int, level: int, folder: str | None
    ) -> None:
        self._task, self._version, self._cpus, self._together = task, version, cpus, together
        sys.path[:] = [path for path in sys.path if path != folder]
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
        if self._version != mmap_st.__version__:
            raise RequestError(
                f"mmap-st is {mmap_st.__version__} on {platform.node()} and {self._version} where the run was"
                " started; install one version on all machines."
            )
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
        folder = os.getcwd()
        handle = self._actor.remote(
            self._task,
            mmap_st.__version__,
            self._size.cpus,
            self._size.number,
            level,
            None if folder in map(os.path.abspath, sys.path) else folder,
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
        said = str(error).strip()
        if isinstance(error, self._ray.exceptions.OutOfMemoryError):
            return "was ended by Ray, since its machine ran out of memory"
        if getattr(error, "actor_init_failed", False):
            reason = said.splitlines()[-1].strip().rstrip(".")
            return f"cannot start ({reason}); install this version of mmap-st and what it needs on all nodes"
        return "died with its node" if "node has died" in said else "died"

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
    with ExitStack() as resources:
        ray = resources.enter_context(_connected(ray_request, options.workers))
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        size = plan_actors(ray_request, nodes, options.workers, request.device, slides)
        yield Actors(request, ray, size, store, options)


@contextmanager
def _connected(request: RayRequest, workers: int | None) -> Iterator[Any]:
    """The module, connected to a cluster."""
    with ExitStack() as resources:
        with _own_signals():
            ray = _imported()
            if ray.is_initialized():
                _check_connected(ray, request)
            elif request.address is None:
                cpus = max(usable_cores(), (workers or 1) * (request.actors or 1))
                _start_here(ray, cpus, resources)
            else:
                _connect(ray, request.address, resources)
        yield ray


def _imported() -> Any:
    # It would tell its makers of every run; who says otherwise in the environment is obeyed. And it would
    # print at length what is said here in one line.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _SAID_HERE)
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            "--engine ray needs the package ray: `pip install 'mmap-st[ray]'`."
        ) from error
    return ray


def _start_here(ray: Any, cpus: int, resources: ExitStack) -> None:
    """Start Ray for this run alone, with files of its own: another user's would be in the way."""
    short = "/tmp" if os.path.isdir("/tmp") else None  # noqa: S108 - paths of sockets are short
    folder = tempfile.TemporaryDirectory(prefix="mmap-ray-", dir=short, ignore_cleanup_errors=True)
    try:
        ray.init(
            "local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=_OBJECTS_BYTES,
            _temp_dir=resources.enter_context(folder),
            **_QUIET,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise RequestError(
            f"--engine ray: Ray cannot be started here ({first_line(error).rstrip('.')})."
        ) from error
    resources.callback(ray.shutdown)


def _connect(ray: Any, address: str, resources: ExitStack) -> None:
    try:
        # Where nobody listens, Ray itself would go on trying for more than ten minutes.
        host, _, port = (os.environ.get("RAY_ADDRESS", "") if address == "auto" else address).rpartition(":")
        if port.isdecimal():
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
        ray.init(address, **_QUIET)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        why = first_line(error).rstrip(".")
        raise RequestError(
            f"--address {printable(address)}: no Ray cluster can be reached there ({why}); one that asks for"
            " a token needs RAY_AUTH_MODE=token."
        ) from error
    resources.callback(ray.shutdown)


def _check_connected(ray: Any, request: RayRequest) -> None:
    """Refuse an address where this process is connected to Ray already, as a notebook may be."""
    here = ray.get_runtime_context().gcs_address
    if request.address not in (None, "auto", here):
        raise RequestError(
            f"--address {printable(str(request.address))}: this process is connected to Ray at {here}; leave"
            " the address out, or call ray.shutdown() first."
        )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what handles signals: importing Ray replaces it, and a run is to stop between two batches."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
