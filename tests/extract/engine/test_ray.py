"""Actors of Ray on this machine: the same store, also where one of them is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mmap_st.data.readers import open_cohort
from mmap_st.extract.engine.extraction import extract_cohort
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.engine.workers.ray_request import RayRequest
from mmap_st.extract.engine.workers.ray_workers import Actors
from tests.conftest import WriteSection
from tests.extract.engine.test_processes import MPPS, Windows, contents, request

ray = pytest.importorskip("ray", reason="needs the extra ray")

#: An actor of one CPU computes by one thread.
OPTIONS = ExtractOptions(batch_size=8, workers=1, chunk=16)

pytestmark = pytest.mark.usefixtures("one_thread")


class Killing(Windows):
    """Kills the first actor once something is safe on disk."""

    def __init__(self, actors: list[Any]) -> None:
        self.actors, self.killed = actors, 0

    def advance(self, amount: int) -> None:
        super().advance(amount)
        if amount > 0 and not self.killed:
            self.killed = next(actor.pid for actor in self.actors if actor.pid)
            os.kill(self.killed, signal.SIGKILL)


def test_actors_write_what_one_process_writes_also_where_one_is_killed(
    write_section: WriteSection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for seed, name in enumerate(("A1", "B1", "C1")):
        root = write_section(name, seed=seed, side=5 + seed)
    cohort = open_cohort(f"her2st:{root}")
    alone = extract_cohort(cohort, tmp_path / "1.zarr", request("cpu"), MPPS, OPTIONS)
    actors: list[Any] = []
    start = Actors.start

    def started(self: Actors, place: int) -> Any:
        actors.append(start(self, place))
        return actors[-1]

    monkeypatch.setattr(Actors, "start", started)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    killing, path = Killing(actors), tmp_path / "n.zarr"
    report = extract_cohort(
        cohort, path, request("auto"), MPPS, OPTIONS, killing, ray=RayRequest(actors=2, gpus_per_actor=0)
    )
    assert report.failed == {}
    assert sorted(report.done) == alone.done
    assert killing.shown == killing.total == alone.windows
    assert contents(path) == contents(tmp_path / "1.zarr")
    assert f"(process {killing.killed} on " in caplog.text
    assert "another one takes its place" in caplog.text
    assert len(actors) == 3
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not ray.is_initialized()
