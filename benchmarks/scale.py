"""Hand slides out to simulated workers, and measure how busy they are and what the queue costs.

    python benchmarks/scale.py [--workers 1,8,64,256,1000] [--rate 3000] [--slides-each 24]

The queue is the one of `mmap extract --device ...` and `--engine ray`, and each slide is locked as ever. A
worker is no process: it sleeps for as long as its device would compute at the given rate. One process thus
stands for the head node, whose time a window of the queue is what is measured. Each number of workers has a
process of its own, whose memory is measured.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmap_st.data import Spots
from mmap_st.extract.engine.engines import SlideResult
from mmap_st.extract.engine.planning.plan import SlidePlan
from mmap_st.extract.engine.workers.worker import Ended, Event, Ready, Started, Wanted, Written
from mmap_st.extract.engine.workers.worker_engine import WorkerEngine
from mmap_st.extract.slides import SourceMpp
from mmap_st.extract.store import FeatureStore, SlideInfo, SlideLock

BATCH, MAGNIFICATIONS = 256, 3
#: Threads that lock slides, which workers do on machines of their own; how often it is looked what is due.
_LOCKERS, _LOOK_S = 16, 0.002
#: Spots of a slide: the median, and the spread of their logarithm, about as in HEST-1k.
MEDIAN_SPOTS, SPREAD = 1500, 0.8


@dataclass(eq=False)
class Sleeper:
    """A worker whose device sleeps."""

    name: str
    plans: deque[SlidePlan] = field(default_factory=deque)
    asks: bool = True
    computing: bool = False

    def death(self) -> str:
        return "died"

    def send(self, plan: SlidePlan | None) -> None:
        self.asks = False
        if plan is not None:
            self.plans.append(plan)


class Sleepers:
    """All workers, and when each says what next."""

    everyone, advice = True, "use fewer"

    def __init__(self, number: int, rate: float, store: Path) -> None:
        self.number, self._rate, self._store = number, rate, store
        self._soon: list[tuple[float, int, Sleeper, Event, SlideLock | None]] = []
        self._order, self._saying = itertools.count(), threading.Lock()
        self._lockers = ThreadPoolExecutor(_LOCKERS)
        self.sleepers: list[Sleeper] = []

    def start(self, place: int) -> Sleeper:
        sleeper = Sleeper(f"worker {place}")
        self.sleepers.append(sleeper)
        self._say(0.0, sleeper, Ready({}, 1))
        self._say(0.0, sleeper, Wanted(True))
        return sleeper

    def listen(self, links: Sequence[Sleeper], seconds: float) -> Iterator[tuple[Sleeper, Event]]:
        for sleeper in self.sleepers:
            if sleeper.plans and not sleeper.computing:
                self._compute(sleeper)
        until = time.monotonic() + seconds
        while not (due := self._due()) and time.monotonic() < until:
            time.sleep(_LOOK_S)
        for sleeper, event, lock in due:
            if isinstance(event, Ended):
                assert lock is not None
                self._lockers.submit(lock.__exit__, None, None, None)
                sleeper.computing = False
            if isinstance(event, Wanted):
                sleeper.asks = True
            yield sleeper, event
            if isinstance(event, Ended):
                if sleeper.plans:
                    self._compute(sleeper)
                elif not sleeper.asks:
                    self._say(0.0, sleeper, Wanted(True))

    def stop(self, links: Sequence[Sleeper]) -> None:
        """Nobody stops them."""

    def end(self, links: Sequence[Sleeper], *, at_once: bool) -> None:
        """Nothing is left to do but to unlock."""
        self._lockers.shutdown()

    def _due(self) -> list[tuple[Sleeper, Event, SlideLock | None]]:
        """What is to be said by now."""
        due = []
        with self._saying:
            while self._soon and self._soon[0][0] <= time.monotonic():
                due.append(heapq.heappop(self._soon)[2:])
        return due

    def _compute(self, sleeper: Sleeper) -> None:
        sleeper.computing = True
        self._lockers.submit(self._begin, sleeper, sleeper.plans.popleft())

    def _begin(self, sleeper: Sleeper, plan: SlidePlan) -> None:
        """Lock a slide, and say when its batches will be written; the next one is asked for at its start."""
        name = plan.info.name
        lock = SlideLock(self._store, name)
        lock.__enter__()
        self._say(0.0, sleeper, Started(name, 0))
        self._say(0.0, sleeper, Wanted(False))
        for done in range(0, plan.windows, BATCH):
            windows = min(BATCH, plan.windows - done)
            self._say((done + windows) / self._rate, sleeper, Written(name, windows, ""), lock)
        self._say(plan.windows / self._rate, sleeper, Ended(SlideResult(name, None)), lock)

    def _say(self, after: float, sleeper: Sleeper, event: Event, lock: SlideLock | None = None) -> None:
        with self._saying:
            heapq.heappush(self._soon, (time.monotonic() + after, next(self._order), sleeper, event, lock))


class Quiet:
    """Listens, and counts."""

    windows = 0

    def slide_started(self, name: str, finished: int) -> None:
        """Nothing is shown."""

    def windows_written(self, name: str, windows: int, details: str) -> None:
        self.windows += windows


def plan_of(number: int, spots: int) -> SlidePlan:
    """A slide's plan, as large in memory as a real one."""
    xy = np.zeros((spots, 2))
    ids = tuple(f"{number}x{index}" for index in range(spots))
    recipes = {0.5 * 2**level: {"mpp": level} for level in range(MAGNIFICATIONS)}
    info = SlideInfo(f"S{number}", None, "x.svs", (10, 10), 0.5, "image")
    return SlidePlan(info, Path("x.svs"), Spots(ids, xy), SourceMpp(0.5, "image"), recipes, 0)


def simulate(workers: int, rate: float, slides: int) -> None:
    """Print how busy the workers were."""
    rng = np.random.default_rng(0)
    spots = np.clip(rng.lognormal(np.log(MEDIAN_SPOTS), SPREAD, slides), 50, 20_000).astype(int)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.zarr"
        store = FeatureStore.create(path)
        plans = [plan_of(number, int(count)) for number, count in enumerate(spots)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        workforce, listener = Sleepers(workers, rate, path), Quiet()
        with WorkerEngine(workforce, lambda: False) as engine:
            began, cpu = time.monotonic(), time.process_time()
            done = sum(1 for _ in engine.embed(plans, store, listener))
            seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    windows = int(spots.sum()) * MAGNIFICATIONS
    assert (done, listener.windows) == (slides, windows)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    busy = windows / rate / workers / seconds
    print(
        f"{workers} | {slides} | {windows:,} | {seconds:.1f} | {busy:.1%} | {cpu / seconds:.1%}"
        f" | {before / 1024:.0f} + {grown:.0f}",
        flush=True,
    )


def main() -> None:
    """Simulate each number of workers in a process of its own, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", default="1,8,64,256,1000")
    parser.add_argument("--rate", type=float, default=3000.0, help="windows/s of a device")
    parser.add_argument("--slides-each", type=int, default=24)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        workers = int(arguments.workers)
        simulate(workers, arguments.rate, workers * arguments.slides_each)
        return
    print("workers | slides | windows | s | busy | queue's core busy | peak MiB", flush=True)
    for workers in arguments.workers.split(","):
        words = ["--one", "--workers", workers, "--rate", str(arguments.rate)]
        words += ["--slides-each", str(arguments.slides_each)]
        subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()
