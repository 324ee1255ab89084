"""A worker embeds slides on one device for another process, which hands them out one by one.

What it is told, what it says, and its work are here, and the main function of workers that are processes of
this machine. It has no state that is worth keeping: what it has embedded is in the store and its journals,
whatever ends it.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event as StopEvent
from pathlib import Path

from mmap_st.errors import DeviceError, MmapError, StoppedError, first_line
from mmap_st.extract.engine.encoder_request import EncoderRequest, build_requested
from mmap_st.extract.engine.engines import LocalEngine, SlideResult
from mmap_st.extract.engine.planning import ExtractOptions, Planned
from mmap_st.extract.store import FeatureStore, Recipe, is_nonempty
from mmap_st.plugins import pickled_with_code
from mmap_st.worker_processes import end_with_parent, take_environment


@dataclass(frozen=True)
class WorkerTask:
    """What a worker embeds with; it is handed over as bytes.

    Attributes
    ----------
    request
        The encoder; its device is the worker's.
    store
        Path of the feature store.
    threads
        Of the CPU, that torch may take where the device is the CPU.
    """

    request: EncoderRequest
    store: Path
    options: ExtractOptions
    threads: int

    def to_bytes(self) -> bytes:
        """All of it, with the code of an encoder that is of a file or a notebook."""
        return pickled_with_code(self)


@dataclass(frozen=True)
class Ready:
    """The encoder is built: what its embeddings share, and their length."""

    recipe: Recipe
    width: int


@dataclass(frozen=True)
class Wanted:
    """A plan is wanted, or None where there is none now; `idle` where nothing else is left to do."""

    idle: bool


@dataclass(frozen=True)
class Counted:
    """A slide that was planned when it was opened has so many windows."""

    slide: str
    windows: int


@dataclass(frozen=True)
class Started:
    """A slide's first windows are being embedded."""

    slide: str
    finished: int


@dataclass(frozen=True)
class Written:
    """Windows of a slide are safe on disk."""

    slide: str
    windows: int
    details: str


@dataclass(frozen=True)
class Ended:
    """A slide ended."""

    result: SlideResult


@dataclass(frozen=True)
class Failed:
    """The worker cannot continue, and ends."""

    error: MmapError


Event = Ready | Wanted | Counted | Started | Written | Ended | Failed | logging.LogRecord


class _Speaker(logging.Handler):
    """Says events, from any thread; and what is logged."""

    def __init__(self, say: Callable[[Event], None]) -> None:
        super().__init__()
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        # What is logged may hold what cannot be sent, such as a trace.
        plain = logging.LogRecord(
            record.name, record.levelno, record.pathname, record.lineno, self.format(record), None, None
        )
        self.say(plain)

    def slide_planned(self, name: str, windows: int) -> None:
        self.say(Counted(name, windows))

    def slide_started(self, name: str, finished: int) -> None:
        self.say(Started(name, finished))

    def windows_written(self, name: str, windows: int, details: str) -> None:
        self.say(Written(name, windows, details))


def run_worker(
    pipe: Connection, stopping: StopEvent, task: bytes, level: int, environment: Mapping[str, str]
) -> None:
    """Embed what is handed out, until there is no more; the main function of a worker process.

    Parameters
    ----------
    pipe
        To the process that hands out plans.
    stopping
        Set once the run is to stop.
    task
        See `WorkerTask.to_bytes`.
    level
        From which on it passes on what is logged.
    environment
        The parent's variables.
    """
    take_environment(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which tells its workers
    end_with_parent()  # another run may take over its slides
    sending = threading.Lock()

    def say(event: Event) -> None:
        with sending:
            try:
                pipe.send(event)
            except ConnectionError:
                os._exit(1)  # there is nobody left to work for

    def receive() -> Planned | None:
        try:
            plan: Planned | None = pipe.recv()
        except (EOFError, ConnectionError):
            return None  # the run is over
        return plan

    work(lambda: pickle.loads(task), say, receive, stopping.is_set, level)  # noqa: S301 - by its own parent


def work(
    task: Callable[[], WorkerTask],
    say: Callable[[Event], None],
    receive: Callable[[], Planned | None],
    stopping: Callable[[], bool],
    level: int,
) -> None:
    """Embed what is handed out, until there is no more; what is logged meanwhile is said.

    Parameters
    ----------
    task
        Makes the task of what was handed over, and may fail as the work may.
    say
        Called with each event, from any thread.
    receive
        Waits for what answers `Wanted`: a plan, or None.
    stopping
        Whether the run is to stop.
    level
        From which on it passes on what is logged.
    """
    speaker = _Speaker(say)
    package = logging.getLogger("mmap_st")
    package.addHandler(speaker)
    package.setLevel(level)
    package.propagate = False
    try:
        _embed(speaker, receive, stopping, task())
    except StoppedError:
        pass  # what is embedded is saved
    except MmapError as error:
        say(Failed(_sendable(error)))
    except Exception as error:
        logging.getLogger(__name__).error("a defect of the program", exc_info=error)
        say(Failed(DeviceError(f"{type(error).__name__}: {first_line(error)}")))


def _embed(
    speaker: _Speaker,
    receive: Callable[[], Planned | None],
    stopping: Callable[[], bool],
    task: WorkerTask,
) -> None:
    import torch

    from mmap_st.extract.engine.device import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(task.threads)
    published = task.options.publish
    place = task.store if published is None else published.url
    there = FeatureStore.open(place) if is_nonempty(place) else None
    engine = LocalEngine(build_requested(task.request, there, task.options), task.options, stopping)
    speaker.say(Ready(engine.recipe, engine.width))

    def asked(*, idle: bool) -> Planned | None:
        speaker.say(Wanted(idle))
        return receive()

    def following() -> Iterator[Planned]:
        while (plan := asked(idle=False)) is not None:
            yield plan

    # There may be none now, and one later: of a worker that died.
    while (first := asked(idle=True)) is not None:
        store = FeatureStore(task.store) if published is None else published.created()
        for result in engine.embed(chain([first], following()), store, speaker):
            speaker.say(Ended(result))


def _sendable(error: MmapError) -> MmapError:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - just written
    except Exception:  # noqa: BLE001 - whatever its parts are
        return DeviceError(str(error))
    return error
