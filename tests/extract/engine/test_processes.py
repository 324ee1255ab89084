"""Several devices: one store, the same numbers, and no process whose death costs more than its own time."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from pathlib import Path

import pytest

from mmap_st.data.cohort import Cohort
from mmap_st.data.readers import open_cohort
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine.encoder_request import EncoderRequest
from mmap_st.extract.engine.extraction import extract_cohort
from mmap_st.extract.engine.plan import ExtractOptions
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.progress import Silent

ENCODER = "timm:test_efficientnet"
MPPS = (0.5, 2.0)
OPTIONS = ExtractOptions(batch_size=8, workers=2, chunk=16)


def request(device: str) -> EncoderRequest:
    return EncoderRequest(encoder_spec(ENCODER), random_weights=True, device=device, precision="fp32")


@pytest.fixture
def cohort(write_section) -> Cohort:
    for seed, name in enumerate(("A1", "B1", "C1", "D1", "E1")):
        root = write_section(name, seed=seed, side=4 + seed)
    return open_cohort(f"her2st:{root}")


def contents(path: Path) -> dict[str, bytes]:
    """All bytes of rows of a store, and what makes them one: versions and times differ."""
    store = FeatureStore.open(path)
    found = {}
    for name in store.slides:
        for mpp, magnification in store.slide(name).complete(ENCODER).items():
            arrays = magnification.embedding(), magnification.valid(), magnification.in_bounds()
            found[f"{name} {mpp}"] = b"".join(array.tobytes() for array in arrays)
    return found


class Windows(Silent):
    """Counts what is shown as done."""

    total = shown = 0

    def start(self, items: int, total: int | None = None) -> None:
        self.total = total or 0

    def advance(self, amount: int) -> None:
        self.shown += amount


@pytest.mark.parametrize("devices", ["cpu,cpu", "cpu, cpu,cpu,cpu"])
def test_they_write_what_one_writes(devices: str, cohort: Cohort, tmp_path: Path) -> None:
    alone = extract_cohort(cohort, tmp_path / "1.zarr", request("cpu"), MPPS, OPTIONS)
    windows = Windows()
    report = extract_cohort(cohort, tmp_path / "n.zarr", request(devices), MPPS, OPTIONS, windows)
    assert sorted(report.done) == alone.done
    assert report.windows == alone.windows == windows.shown == windows.total
    assert contents(tmp_path / "n.zarr") == contents(tmp_path / "1.zarr")
    assert (
        extract_cohort(cohort, tmp_path / "n.zarr", request(devices), MPPS, OPTIONS).unchanged == alone.done
    )


def children() -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid]


def test_twenty_kills_lose_nothing(cohort: Cohort, tmp_path: Path) -> None:
    extract_cohort(cohort, tmp_path / "1.zarr", request("cpu"), MPPS, OPTIONS)
    chance, over, killed = random.Random(0), threading.Event(), []

    def kill() -> None:
        while not over.wait(chance.uniform(0, 6)) and len(killed) < 20:
            if found := children():
                killed.append(chance.choice(found))
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        windows = Windows()
        report = extract_cohort(cohort, tmp_path / "n.zarr", request("cpu,cpu"), MPPS, OPTIONS, windows)
    finally:
        over.set()
        killer.join()
    assert killed
    assert report.failed == {}
    assert windows.shown == windows.total
    assert contents(tmp_path / "n.zarr") == contents(tmp_path / "1.zarr")
