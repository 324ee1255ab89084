"""The queue of several workers, whatever they are: here, scripts that say what workers would."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from mmap_st.errors import DeviceError, EncoderError, RequestError, StoppedError
from mmap_st.extract.engine.engines import SlideResult
from mmap_st.extract.engine.workers import worker_engine as workers
from mmap_st.extract.engine.workers.worker import Ended, Event, Failed, Ready, Started, Wanted, Written
from mmap_st.extract.engine.workers.worker_engine import WorkerEngine

#: What a worker says; it is told a plan where it wanted one.
Script = Generator[Event, Any, None]
LOCKED = "another process is writing it"


def plan(name: str, windows: int) -> Any:
    return SimpleNamespace(name=name, info=SimpleNamespace(name=name), windows=windows)


PLANS = [plan("small", 1), plan("large", 9), plan("middle", 5)]


def done(name: str) -> SlideResult:
    return SlideResult(name, None)


def embeds(precision: str = "fp32", ends: Callable[[str], SlideResult] = done) -> Script:
    yield Ready({"precision": precision}, 3)
    while (given := (yield Wanted(True))) is not None:
        yield Started(given.info.name, 0)
        yield Written(given.info.name, given.windows, "")
        yield Ended(ends(given.info.name))


def dies(at: str, written: int = 0) -> Script:
    """Embeds until it is given one slide, and is gone with it."""
    yield Ready({"precision": "fp32"}, 3)
    while (given := (yield Wanted(True))) is not None:
        yield Started(given.info.name, 0)
        if given.info.name == at:
            if written:
                yield Written(at, written, "")
            return
        yield Written(given.info.name, given.windows, "")
        yield Ended(done(given.info.name))


@dataclass(eq=False)
class Fake:
    """A script as the engine reaches it: `event` is the next that it says, None once it has ended."""

    name: str
    script: Script
    event: Event | None = None
    said: bool = False
    ended: bool = False

    def __post_init__(self) -> None:
        self.event = next(self.script, None)

    def send(self, plan: Any) -> None:
        assert isinstance(self.event, Wanted)
        try:
            self.event = self.script.send(plan)
        except StopIteration:
            self.event = None
        self.said = False

    def say(self) -> Iterator[Event | None]:
        """What is next; after it wanted a plan, nothing until it is told."""
        if not self.said:
            yield (event := self.event)
            if isinstance(event, Wanted) and self.event is event:
                self.said = True
            elif event is not None and not isinstance(event, Wanted):
                self.event = next(self.script, None)

    def death(self) -> str:
        return "was lost"


@dataclass
class Scripts:
    """Starts a script in each place; `again` where one has ended; None is one that no machine has room for."""

    first: Sequence[Script | None]
    again: Callable[[], Script] = embeds
    everyone: bool = False
    advice: str = "buy more"
    started: list[Fake] = field(default_factory=list)
    stopped: bool = False

    def __post_init__(self) -> None:
        self.number = len(self.first)

    def start(self, place: int) -> Fake:
        script = self.first[place] if len(self.started) < self.number else self.again()
        link = Fake(f"worker {place}", script or iter(()), said=script is None)  # type: ignore[arg-type]
        self.started.append(link)
        return link

    def listen(self, links: Sequence[Fake], seconds: float) -> Iterator[tuple[Fake, Event | None]]:
        for link in links:
            for event in link.say():
                yield link, event

    def stop(self, links: Sequence[Fake]) -> None:
        self.stopped = True

    def end(self, links: Sequence[Fake], *, at_once: bool) -> None:
        for link in links:
            link.ended = True


class Shown:
    """Counts what is shown of each slide."""

    def __init__(self) -> None:
        self.windows: dict[str, int] = {}
        self.order: list[str] = []

    def slide_started(self, name: str, finished: int) -> None:
        self.order.append(name)

    def windows_written(self, name: str, windows: int, details: str) -> None:
        self.windows[name] = self.windows.get(name, 0) + windows


def run(
    scripts: Scripts, stop: Callable[[], bool] = lambda: False, *, claim: bool = False
) -> tuple[dict[str, SlideResult], Shown]:
    shown = Shown()
    with WorkerEngine(scripts, stop, claim=claim) as engine:
        results = list(engine.embed(PLANS, None, shown))  # type: ignore[arg-type]
    names = [result.name for result in results]
    assert len(set(names)) == len(names)
    assert all(link.ended or link.event is None for link in scripts.started)
    return {result.name: result for result in results}, shown


ALL = {"small": 1, "middle": 5, "large": 9}


def test_the_largest_slides_come_first() -> None:
    results, shown = run(Scripts([embeds()]))
    assert shown.order == ["large", "middle", "small"]
    assert shown.windows == ALL
    assert not any(result.failure for result in results.values())


def test_slides_of_one_that_is_gone_are_done_by_another_and_are_counted_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scripts = Scripts([dies("large", written=4), embeds()])
    results, shown = run(scripts)
    assert shown.windows == ALL
    assert set(results) == set(ALL)
    assert len(scripts.started) == 3
    assert "worker 0 was lost; another one takes its place" in caplog.text


def test_a_slide_at_which_they_die_without_getting_further_fails() -> None:
    scripts = Scripts([dies("large")], again=lambda: dies("large"))
    results, shown = run(scripts)
    assert "was lost, 5 times without getting further" in str(results.pop("large").failure)
    assert set(results) == {"small", "middle"}
    assert shown.windows == {"small": 1, "middle": 5, "large": 0}
    assert len(scripts.started) == 6


def test_who_gets_further_each_time_may_die_often() -> None:
    deaths = iter(range(12))
    scripts = Scripts([dies("large", 1)], again=lambda: embeds() if next(deaths) == 11 else dies("large", 1))
    results, shown = run(scripts)
    assert results["large"].failure is None
    assert shown.windows == ALL


def test_a_slide_that_stays_locked_after_a_death_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_LOOK_S", 0.01)
    locked = iter([True] * 3 + [False] * 10)

    def ends(name: str) -> SlideResult:
        held = name == "large" and next(locked)
        return SlideResult(name, LOCKED if held else None, of_another=held)

    results, _ = run(Scripts([dies("large")], again=lambda: embeds(ends=ends)))
    assert results["large"].failure is None
    assert not next(locked)


def test_a_slide_that_stays_locked_for_good_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_LOOK_S", 0.01)
    monkeypatch.setattr(workers, "_LOCKED_S", 0.1)

    def ends(name: str) -> SlideResult:
        held = name == "large"
        return SlideResult(name, LOCKED if held else None, of_another=held)

    results, _ = run(Scripts([dies("large")], again=lambda: embeds(ends=ends)))
    assert results["large"].of_another
    # With --claim it is waited for elsewhere. One that no worker of ours had is another job's.
    monkeypatch.setattr(workers, "_LOCKED_S", 600.0)
    results, _ = run(Scripts([dies("large")], again=lambda: embeds(ends=ends)), claim=True)
    assert results["large"].of_another
    results, shown = run(Scripts([embeds(ends=ends)]))
    assert results["large"].failure == LOCKED
    assert shown.order.count("large") == 1


def test_who_is_pending_is_not_waited_for() -> None:
    results, _ = run(Scripts([None, embeds(), None]))
    assert set(results) == set(ALL)


def test_who_would_embed_differently_is_left_out_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    results, _ = run(Scripts([embeds("fp32"), embeds("bf16")]))
    assert set(results) == set(ALL)
    assert "worker 1 is given up (worker 0 and worker 1 would embed differently (precision" in caplog.text
    with pytest.raises(RequestError, match="give --precision"):
        run(Scripts([embeds("fp32"), embeds("bf16")], everyone=True))


def test_an_encoder_that_one_cannot_build_is_said_where_no_other_can() -> None:
    def fails() -> Script:
        yield Failed(EncoderError("no such weights."))

    with pytest.raises(EncoderError, match="no such weights"):
        run(Scripts([None, fails()]))
    results, _ = run(Scripts([embeds(), fails()]))
    assert set(results) == set(ALL)


def test_who_dies_before_it_is_ready_is_started_ten_times() -> None:
    def nothing() -> Script:
        yield from ()

    scripts = Scripts([nothing()], again=nothing)
    with pytest.raises(DeviceError, match=r"worker 0 was lost while it prepared the encoder.*buy more"):
        run(scripts)
    assert len(scripts.started) == 10


def test_a_stop_does_not_wait_for_who_is_pending() -> None:
    asked = iter([False] * 4)
    scripts = Scripts([embeds(), None])
    with pytest.raises(StoppedError):
        run(scripts, stop=lambda: next(asked, True))
    assert scripts.stopped
    assert scripts.started[1].ended
