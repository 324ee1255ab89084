"""Several devices: one store, the same numbers, and no process whose death costs more than its own time."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from pathlib import Path

import pytest
from PIL import Image

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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cpu,", "give devices with commas between"),
        ("all", "torch sees no GPU"),
        ("cpu,mps:7", "is not available"),
    ],
)
def test_devices_that_are_none_are_refused(
    text: str, said: str, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RequestError, match=said):
        extract_cohort(cohort, tmp_path / "n.zarr", request(text), MPPS, OPTIONS)
    assert not (tmp_path / "n.zarr").exists()


def test_an_encoder_that_cannot_be_had_is_said_once(cohort: Cohort, tmp_path: Path) -> None:
    missing = EncoderRequest(encoder_spec(ENCODER), tmp_path / "none.safetensors", device="cpu,cpu")
    with pytest.raises(RequestError, match=r"none\.safetensors"):
        extract_cohort(cohort, tmp_path / "n.zarr", missing, MPPS, OPTIONS)
    assert multiprocessing.active_children() == []


def test_a_slide_that_kills_its_process_fails_and_the_others_are_done(cohort: Cohort, tmp_path: Path) -> None:
    """By an encoder of a file, whose code reaches the workers, and which one slide's windows make crash."""
    image = cohort["C1"].image
    assert image is not None
    Image.new("RGB", Image.open(image).size, (1, 2, 3)).save(image, quality=95)
    (tmp_path / "mine.py").write_text(CRASHING)
    mine = EncoderRequest(encoder_spec(f"{tmp_path / 'mine.py'}:make"), device="cpu,cpu", precision="fp32")
    report = extract_cohort(cohort, tmp_path / "n.zarr", mine, MPPS, OPTIONS)
    assert sorted(report.done) == ["A1", "B1", "D1", "E1"]
    assert "was killed by signal 6, 5 times without getting further" in report.failed["C1"]


CRASHING = """
import os, signal
import torch
from mmap_st.encoders import CustomModel, EncoderSpec, Pooling, Preprocessing

class Net(torch.nn.Module):
    def forward(self, x):
        if x.std() < 0.01:
            os.abort()
        return x.mean((2, 3))

def make():
    return EncoderSpec(
        name="mine", model=CustomModel(Net), input_px=32,
        preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        pooling=Pooling("own", text="means of the channels"), width=3,
    )
"""
