"""Several devices: a process for each, all fed from one queue of slides, the largest first."""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

from mmap_st.errors import DeviceError, MmapError, RequestError, StoppedError, counted, printable
from mmap_st.extract.encoders import device_of
from mmap_st.extract.engine.encoder_request import EncoderRequest
from mmap_st.extract.engine.engines import Listener, SlideResult
from mmap_st.extract.engine.plan import ExtractOptions, SlidePlan, usable_cores
from mmap_st.extract.engine.worker import (
    Ended,
    Event,
    Failed,
    Ready,
    Started,
    Wanted,
    WorkerTask,
    Written,
    run_worker,
)
from mmap_st.extract.store import FeatureStore, Recipe, differences
from mmap_st.worker_processes import start_method, without_main_module

_LOG = logging.getLogger(__name__)
_POLL_S = 0.2
_ENDING_S = 10.0
#: How often in a row processes may die at one slide without getting further with it, and how often one may
#: before its encoder is ready.
_MOST_DEATHS, _MOST_STARTS = 5, 10


@dataclass
class _Worker:
    """A process, and what it has in hand.

    Attributes
    ----------
    ready
        What it makes; None while it builds the encoder.
    idle
        Whether it waits for a plan, with nothing else to do.
    plans
        Slides that it was given and that have not ended, by name.
    shown
        Windows that the listener counts as done, of those slides that it has started, in that order.
    got_further
        Slides of which it has written some itself.
    failure
        Why it ended, where it could say so.
    gone
        Whether it has ended.
    starts
        How many in a row were started on its device and did not get ready, with this one.
    """

    device: str
    process: BaseProcess
    pipe: Connection
    ready: Ready | None = None
    idle: bool = False
    plans: dict[str, SlidePlan] = field(default_factory=dict)
    shown: dict[str, int] = field(default_factory=dict)
    got_further: set[str] = field(default_factory=set)
    failure: MmapError | None = None
    gone: bool = False
    starts: int = 1

    def give(self, plan: SlidePlan | None) -> None:
        """Answer that it wants a plan; without one, an idle worker ends.

        One that has died meanwhile is noticed where it is listened to.
        """
        self.idle = False
        if plan is not None:
            self.plans[plan.info.name] = plan
        try:
            self.pipe.send(plan)
        except OSError:
            self.gone = True

    def death(self) -> str:
        """How it ended, for people."""
        code = self.process.exitcode
        return (
            f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
        )


class ProcessEngine:
    """Embeds slides on several devices, with one process each.

    A process that dies costs no more than its own time: its slides go back to the queue, and another one is
    started on its device. A slide at which processes die again and again without getting further fails.

    Parameters
    ----------
    request
        The encoder.
    devices
        As torch names them; one may be named more than once.
    store
        Path of the feature store.
    options
        Reading threads and memory are shared out.
    stop
        Asked all the time; True ends the run.
    """

    def __init__(
        self,
        request: EncoderRequest,
        devices: Sequence[str],
        store: Path,
        options: ExtractOptions,
        stop: Callable[[], bool],
    ) -> None:
        self._request, self._devices, self._store = request, [device_of(name) for name in devices], store
        self._options, self._stop = replace(options, processes=len(devices)), stop
        self._context = start_method("torch", "timm")
        self._stopping = self._context.Event()
        self._workers: list[_Worker] = []
        self.recipe: Recipe = {}
        self.width = 0

    def __enter__(self) -> ProcessEngine:
        try:
            for device in self._devices:
                self._workers.append(self._start(device))
            while any(worker.ready is None for worker in self._workers):
                if self._stop():
                    raise StoppedError("stopped before the first slide")
                for worker, event in self._events():
                    _count_request(worker, event)
                for worker in [worker for worker in self._workers if worker.gone]:
                    self._workers.remove(worker)
                    if not self._start_again(worker):
                        raise self._why(worker)
            self._agree()
        except BaseException:
            self._end(at_once=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(at_once=kind is not None)

    def embed(
        self, plans: Sequence[SlidePlan], store: FeatureStore, listener: Listener
    ) -> Iterator[SlideResult]:
        """Embed slides, those with the most windows first.

        Raises
        ------
        StoppedError
            If the run was asked to stop; finished batches are saved.
        MmapError
            If no process is left, what ended the last one.
        """
        waiting = deque(sorted(plans, key=lambda plan: -plan.windows))
        deaths: Counter[str] = Counter()
        while waiting or any(worker.plans for worker in self._workers):
            if self._stop():
                self._stopping.set()
            stopped = self._stopping.is_set()
            if stopped and not self._workers:
                raise StoppedError("stopped between two batches")
            for worker in self._workers:
                if worker.idle and (waiting or stopped):
                    worker.give(None if stopped else waiting.popleft())
            for worker, event in self._events():
                match event:
                    case Wanted(idle):
                        worker.idle = idle
                        if not idle:
                            worker.give(None if stopped or not waiting else waiting.popleft())
                    case Started(slide, finished):
                        worker.shown[slide] = finished
                        listener.slide_started(slide, finished)
                    case Written(slide, windows, details):
                        worker.shown[slide] += windows
                        worker.got_further.add(slide)
                        listener.windows_written(slide, windows, details)
                    case Ended(result):
                        del worker.plans[result.name]
                        worker.shown.pop(result.name, None)
                        yield result
            for worker in [worker for worker in self._workers if worker.gone]:
                yield from self._replace(worker, waiting, deaths, listener)

    def _start(self, device: str) -> _Worker:
        mine, theirs = self._context.Pipe()
        task = WorkerTask(
            replace(self._request, device=device),
            self._store,
            self._options,
            max(1, usable_cores() // len(self._devices)),
        )
        level = logging.getLogger("mmap_st").getEffectiveLevel()
        process = self._context.Process(
            target=run_worker,
            args=(theirs, self._stopping, task.to_bytes(), level, dict(os.environ)),
            name=f"embed on {device}",
            daemon=True,
        )
        with without_main_module():
            process.start()
        theirs.close()
        return _Worker(device, process, mine)

    def _events(self) -> Iterator[tuple[_Worker, Event]]:
        """What workers say, waiting for it for a moment; what they log is passed on."""
        pipes = {worker.pipe: worker for worker in self._workers if not worker.gone}
        for pipe in wait(list(pipes), timeout=_POLL_S):
            assert isinstance(pipe, Connection)
            worker = pipes[pipe]
            try:
                event: Event = pipe.recv()
            except (EOFError, OSError):
                worker.gone = True
                continue
            match event:
                case logging.LogRecord():
                    logging.getLogger(event.name).handle(event)
                case Ready():
                    worker.ready = event
                case Failed(error):
                    worker.failure = error
                case _:
                    yield worker, event

    def _agree(self) -> None:
        """Make sure that all devices embed alike: all that they write is one store's.

        Raises
        ------
        RequestError
            Naming the differences.
        """
        first, *others = self._workers
        assert first.ready is not None
        self.recipe, self.width = first.ready.recipe, first.ready.width
        for other in others:
            assert other.ready is not None
            if different := differences(self.recipe, other.ready.recipe):
                raise RequestError(
                    f"--device: {first.device} and {other.device} would embed differently"
                    f" ({'; '.join(different)}); give --precision, or devices of one kind."
                )

    def _replace(
        self, worker: _Worker, waiting: deque[SlidePlan], deaths: Counter[str], listener: Listener
    ) -> Iterator[SlideResult]:
        """Put the slides of a worker that is gone back, and start another; a slide that kills them fails."""
        worker.process.join(_ENDING_S)
        self._workers.remove(worker)
        plans = list(worker.plans.values())
        if self._stopping.is_set():
            waiting.extendleft(reversed(plans))
            return
        for slide, windows in worker.shown.items():
            listener.windows_written(slide, -windows, "")
        if plans and worker.failure is None:
            # The one that is being embedded; one that was started before it is only still being written.
            started = [name for name in worker.shown if name in worker.plans]
            name = started[-1] if started else plans[0].info.name
            deaths[name] = 1 if name in worker.got_further else deaths[name] + 1
            if deaths[name] >= _MOST_DEATHS:
                plans = [plan for plan in plans if plan.info.name != name]
                yield SlideResult(
                    name,
                    f"the process that embeds it {worker.death()}, {deaths[name]} times without getting"
                    " further; look at its image, and whether memory ran out.",
                )
        waiting.extendleft(reversed(plans))
        if self._start_again(worker):
            return
        if not self._workers and waiting:
            raise self._why(worker)
        _LOG.warning(
            "%s is given up (%s); %s",
            printable(worker.device),
            printable(str(self._why(worker)).rstrip(".")),
            counted(len(self._workers), "process continues", "processes continue"),
        )

    def _start_again(self, worker: _Worker) -> bool:
        """Start another process in place of one that is gone, unless that would help nobody."""
        worker.process.join(_ENDING_S)
        if worker.failure is not None or (worker.ready is None and worker.starts >= _MOST_STARTS):
            return False
        _LOG.warning(
            "the process on %s %s; another one takes its place",
            printable(worker.device),
            printable(worker.death()),
        )
        self._workers.append(self._start(worker.device))
        self._workers[-1].starts = 1 if worker.ready is not None else worker.starts + 1
        return True

    def _why(self, worker: _Worker) -> MmapError:
        if worker.failure is not None:
            return worker.failure
        worker.process.join(_ENDING_S)
        return DeviceError(
            f"the process on {worker.device} {worker.death()} while it prepared the encoder; look whether"
            " memory ran out, and name fewer devices."
        )

    def _end(self, *, at_once: bool) -> None:
        """End all workers; they have nothing to do, or are to leave what they do."""
        for worker in self._workers:
            if at_once:
                worker.process.terminate()
            worker.pipe.close()  # which ends one that waits for a plan
        for worker in self._workers:
            worker.process.join(_ENDING_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()


def _count_request(worker: _Worker, event: Event) -> None:
    """While others are getting ready, one that is ready waits."""
    if isinstance(event, Wanted):
        worker.idle = event.idle
