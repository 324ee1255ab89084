"""Several workers: one queue of slides, the largest first, and what becomes of the slides of one that dies.

How workers are started and reached is another module's: processes of this machine, or actors of a cluster.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from mmap_st.errors import DeviceError, MmapError, RequestError, StoppedError, counted, printable
from mmap_st.extract.engine.engines import Listener, SlideResult
from mmap_st.extract.engine.planning import Planned
from mmap_st.extract.engine.workers.worker import (
    Counted,
    Ended,
    Event,
    Failed,
    Ready,
    Started,
    Wanted,
    Written,
)
from mmap_st.extract.store import FeatureStore, Recipe, differences

_LOG = logging.getLogger(__name__)
_POLL_S = 0.2
#: How often in a row workers may die at one slide without getting further with it, and how often one may
#: before its encoder is ready.
_MOST_DEATHS, _MOST_STARTS = 5, 10
#: A slide of a worker that is gone may stay locked: its process may outlive the news of its end, and on
#: another machine its signature counts for a minute more. How often it is tried again, and for how long.
_LOOK_S, _LOCKED_S = 5.0, 180.0


class Link(Protocol):
    """A worker as it is reached."""

    @property
    def name(self) -> str:
        """What it is and where, for people."""

    def send(self, plan: Planned | None) -> None:
        """Hand it a plan, or None: there is none. That it is gone is noticed where it is listened to."""

    def death(self) -> str:
        """How it ended, for people, as in ``was killed by signal 9``."""


_Link = TypeVar("_Link", bound=Link)


class Workforce(Protocol[_Link]):
    """Starts workers of one kind, and listens to them.

    Attributes
    ----------
    number
        Of workers.
    everyone
        Whether the first slide waits until all are ready; else the first that is ready begins.
    advice
        What to do where workers die before they are ready.
    """

    number: int
    everyone: bool
    advice: str

    def start(self, place: int) -> _Link:
        """Start one, in a place from 0 to `number` - 1; another one in that place has ended."""

    def listen(self, links: Sequence[_Link], seconds: float) -> Iterator[tuple[_Link, Event | None]]:
        """What workers say, waiting for it as long at most; None of one that is gone."""

    def stop(self, links: Sequence[_Link]) -> None:
        """Tell workers that the run is to stop; they save what is embedded, and end."""

    def end(self, links: Sequence[_Link], *, at_once: bool) -> None:
        """End workers that have nothing to do, or are to leave what they do."""


@dataclass(eq=False)
class _Worker(Generic[_Link]):
    """A worker, and what it has in hand.

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
        How many in a row were started in its place and did not get ready, with this one.
    """

    place: int
    link: _Link
    ready: Ready | None = None
    idle: bool = False
    plans: dict[str, Planned] = field(default_factory=dict)
    shown: dict[str, int] = field(default_factory=dict)
    got_further: set[str] = field(default_factory=set)
    failure: MmapError | None = None
    gone: bool = False
    starts: int = 1

    def give(self, plan: Planned | None) -> None:
        """Answer that it wants a plan; without one, an idle worker ends."""
        self.idle = False
        if plan is not None:
            self.plans[plan.name] = plan
        self.link.send(plan)


class WorkerEngine(Generic[_Link]):
    """Embeds slides by several workers.

    One that dies costs no more than its own time: its slides go back to the queue, and another one is started
    in its place. A slide at which workers die again and again without getting further fails.

    Parameters
    ----------
    workforce
        Starts them.
    stop
        Asked all the time; True ends the run.
    claim
        Whether slides that others have locked are waited for elsewhere, see `ExtractOptions`.
    """

    def __init__(self, workforce: Workforce[_Link], stop: Callable[[], bool], *, claim: bool = False) -> None:
        self._workforce, self._stop, self._claim = workforce, stop, claim
        self._stopping = False
        self._workers: list[_Worker[_Link]] = []
        self._first: _Worker[_Link] | None = None
        self.recipe: Recipe = {}
        self.width = 0

    def __enter__(self) -> WorkerEngine[_Link]:
        try:
            for place in range(self._workforce.number):
                self._workers.append(_Worker(place, self._workforce.start(place)))
            while not self._enough():
                if self._stop():
                    raise StoppedError("stopped before the first slide")
                for worker, event in self._events():
                    _count_request(worker, event)
                for worker in [worker for worker in self._workers if worker.gone]:
                    self._workers.remove(worker)
                    if not self._start_again(worker):
                        if self._workforce.everyone or self._first is None:
                            raise self._why(worker)
                        self._say_given_up(worker)
        except BaseException:
            self._end(at_once=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(at_once=kind is not None)

    def embed(
        self, plans: Sequence[Planned], store: FeatureStore, listener: Listener
    ) -> Iterator[SlideResult]:
        """Embed slides, those with the most windows first.

        Raises
        ------
        StoppedError
            If the run was asked to stop; finished batches are saved.
        MmapError
            If no worker is left, what ended the last one.
        """
        queue = _Queue(plans)
        while queue or any(worker.plans for worker in self._workers):
            if self._stop() and not self._stopping:
                self._begin_to_stop()
            if self._stopping and not self._workers:
                raise StoppedError("stopped between two batches")
            for worker in self._workers:
                if worker.idle and (self._stopping or queue.has_one):
                    worker.give(None if self._stopping else queue.take())
            for worker, event in self._events():
                match event:
                    case Wanted(idle):
                        worker.idle = idle
                        if not idle:
                            worker.give(None if self._stopping or not queue.has_one else queue.take())
                    case Counted(slide, windows):
                        listener.slide_planned(slide, windows)
                    case Started(slide, finished):
                        worker.shown[slide] = finished
                        listener.slide_started(slide, finished)
                    case Written(slide, windows, details):
                        worker.shown[slide] += windows
                        worker.got_further.add(slide)
                        listener.windows_written(slide, windows, details)
                    case Ended(result):
                        plan = worker.plans.pop(result.name)
                        worker.shown.pop(result.name, None)
                        if self._claim or not (result.of_another and queue.put_off(plan)):
                            yield result
            for worker in [worker for worker in self._workers if worker.gone]:
                yield from self._replace(worker, queue, listener)

    def _enough(self) -> bool:
        """Whether the first slide can begin."""
        ready = [worker.ready is not None for worker in self._workers]
        return all(ready) if self._workforce.everyone else any(ready)

    def _events(self) -> Iterator[tuple[_Worker[_Link], Event]]:
        """What workers say, waiting for it for a moment; what they log is passed on."""
        workers = {id(worker.link): worker for worker in self._workers if not worker.gone}
        links = [worker.link for worker in workers.values()]
        for link, event in self._workforce.listen(links, _POLL_S):
            worker = workers[id(link)]
            match event:
                case None:
                    worker.gone = True
                case logging.LogRecord():
                    logging.getLogger(event.name).handle(event)
                case Ready():
                    worker.ready = event
                    self._check_agreement(worker, event)
                case Failed(error):
                    worker.failure = error
                case _:
                    yield worker, event

    def _check_agreement(self, worker: _Worker[_Link], made: Ready) -> None:
        """Let a worker embed only as the first one does: all that they write is one store's."""
        if self._first is None:
            self._first, self.recipe, self.width = worker, made.recipe, made.width
        elif different := differences(self.recipe, made.recipe):
            worker.failure = RequestError(
                f"{self._first.link.name} and {worker.link.name} would embed differently"
                f" ({'; '.join(different)}); give --precision, or devices of one kind."
            )
            worker.gone = True
            self._workforce.end([worker.link], at_once=True)

    def _begin_to_stop(self) -> None:
        """Tell workers to stop; those that have not begun are not waited for."""
        self._stopping = True
        self._workforce.stop([worker.link for worker in self._workers])
        preparing = [worker for worker in self._workers if worker.ready is None]
        self._workforce.end([worker.link for worker in preparing], at_once=True)
        self._workers = [worker for worker in self._workers if worker.ready is not None]

    def _replace(self, worker: _Worker[_Link], queue: _Queue, listener: Listener) -> Iterator[SlideResult]:
        """Put the slides of a worker that is gone back, and start another; a slide that kills them fails."""
        death = worker.link.death()
        self._workers.remove(worker)
        plans = list(worker.plans.values())
        if self._stopping:
            queue.put_back(plans)
            return
        for slide, windows in worker.shown.items():
            listener.windows_written(slide, -windows, "")
        if plans and worker.failure is None:
            # The one that is being embedded; one that was started before it is only still being written.
            started = [name for name in worker.shown if name in worker.plans]
            name = started[-1] if started else plans[0].name
            deaths = queue.count_death(name, got_further=name in worker.got_further)
            if deaths >= _MOST_DEATHS:
                plans = [plan for plan in plans if plan.name != name]
                yield SlideResult(
                    name,
                    f"the process that embeds it {death}, {deaths} times without getting further; look at its"
                    " image, and whether memory ran out.",
                )
        queue.put_back(plans)
        if self._start_again(worker):
            return
        if not self._workers and queue:
            raise self._why(worker)
        self._say_given_up(worker)

    def _say_given_up(self, worker: _Worker[_Link]) -> None:
        _LOG.warning(
            "%s is given up (%s); %s",
            printable(worker.link.name),
            printable(str(self._why(worker)).rstrip(".")),
            counted(len(self._workers), "other continues", "others continue"),
        )

    def _start_again(self, worker: _Worker[_Link]) -> bool:
        """Start another one in place of one that is gone, unless that would help nobody."""
        death = worker.link.death()
        if worker.failure is not None or (worker.ready is None and worker.starts >= _MOST_STARTS):
            return False
        _LOG.warning("%s %s; another one takes its place", printable(worker.link.name), printable(death))
        starts = 1 if worker.ready is not None else worker.starts + 1
        self._workers.append(_Worker(worker.place, self._workforce.start(worker.place), starts=starts))
        return True

    def _why(self, worker: _Worker[_Link]) -> MmapError:
        if worker.failure is not None:
            return worker.failure
        return DeviceError(
            f"{worker.link.name} {worker.link.death()} while it prepared the encoder; look whether memory ran"
            f" out, and {self._workforce.advice}."
        )

    def _end(self, *, at_once: bool) -> None:
        self._workforce.end([worker.link for worker in self._workers], at_once=at_once)
        self._workers.clear()


def _count_request(worker: _Worker[_Link], event: Event) -> None:
    """While others are getting ready, one that is ready waits."""
    if isinstance(event, Wanted):
        worker.idle = event.idle


class _Queue:
    """Slides that no worker has, those with the most windows first; false once there are none."""

    def __init__(self, plans: Sequence[Planned]) -> None:
        self._waiting = deque(sorted(plans, key=lambda plan: -plan.windows))
        self._put_off: list[tuple[float, Planned]] = []
        self._deaths: Counter[str] = Counter()
        self._given_back: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting or self._put_off)

    @property
    def has_one(self) -> bool:
        """Whether there is a slide to take now."""
        now = time.monotonic()
        due = [plan for when, plan in self._put_off if when <= now]
        self._put_off = [(when, plan) for when, plan in self._put_off if when > now]
        self._waiting.extendleft(due)
        return bool(self._waiting)

    def take(self) -> Planned:
        """The next one."""
        return self._waiting.popleft()

    def put_back(self, plans: Sequence[Planned]) -> None:
        """Take back, to the front, what a worker had that is gone."""
        now = time.monotonic()
        self._given_back |= {plan.name: now for plan in plans}
        self._waiting.extendleft(reversed(plans))

    def put_off(self, plan: Planned) -> bool:
        """Take a slide that is locked, for later; False where it is not since a worker of ours is gone."""
        now = time.monotonic()
        if now - self._given_back.get(plan.name, float("-inf")) > _LOCKED_S:
            return False
        self._put_off.append((now + _LOOK_S, plan))
        return True

    def count_death(self, name: str, *, got_further: bool) -> int:
        """Count that a worker died at a slide; how many have in a row, without getting further."""
        self._deaths[name] = 1 if got_further else self._deaths[name] + 1
        return self._deaths[name]
