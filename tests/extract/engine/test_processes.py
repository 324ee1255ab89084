"""Several devices: one store, the same numbers, and no process whose death costs more than its own time."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path

import pytest
from PIL import Image

from mmap_st.data.cohort import Cohort
from mmap_st.data.readers import open_cohort
from mmap_st.errors import RequestError, StoppedError
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine.encoder_request import EncoderRequest
from mmap_st.extract.engine.extraction import extract_cohort
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.progress import Silent

ENCODER = "timm:test_efficientnet"
MPPS = (0.5, 2.0)
OPTIONS = ExtractOptions(batch_size=8, workers=2, chunk=16)

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_they_write_what_one_writes(cohort: Cohort, tmp_path: Path) -> None:
    alone = extract_cohort(cohort, tmp_path / "1.zarr", request("cpu"), MPPS, OPTIONS)
    for devices in ("cpu,cpu", "cpu, cpu,cpu,cpu"):
        windows, path = Windows(), tmp_path / f"{devices}.zarr"
        report = extract_cohort(cohort, path, request(devices), MPPS, OPTIONS, windows)
        assert sorted(report.done) == alone.done
        assert report.windows == alone.windows == windows.shown == windows.total
        assert contents(path) == contents(tmp_path / "1.zarr")
    assert extract_cohort(cohort, path, request("cpu,cpu"), MPPS, OPTIONS).unchanged == alone.done


class Killing(Windows):
    """Kills a process now and then, when something is safe on disk."""

    most = 8

    def __init__(self) -> None:
        self.chance, self.kills = random.Random(0), 0

    def advance(self, amount: int) -> None:
        super().advance(amount)
        processes = multiprocessing.active_children()
        if amount > 0 and processes and self.kills < self.most and self.chance.random() < 0.6:
            self.kills += 1
            self.chance.choice(processes).kill()


def test_kills_lose_nothing(cohort: Cohort, tmp_path: Path) -> None:
    extract_cohort(cohort, tmp_path / "1.zarr", request("cpu"), MPPS, OPTIONS)
    killing = Killing()
    report = extract_cohort(cohort, tmp_path / "n.zarr", request("cpu,cpu"), MPPS, OPTIONS, killing)
    assert killing.kills == Killing.most
    assert report.failed == {}
    assert killing.shown == killing.total
    assert contents(tmp_path / "n.zarr") == contents(tmp_path / "1.zarr")


def test_a_stop_ends_idle_processes_too_and_the_next_run_resumes(cohort: Cohort, tmp_path: Path) -> None:
    one, windows = Cohort((cohort["E1"],), "test"), Windows()
    with pytest.raises(StoppedError):
        extract_cohort(
            one,
            tmp_path / "n.zarr",
            request("cpu,cpu"),
            MPPS,
            OPTIONS,
            windows,
            stop=lambda: windows.shown > 0,
        )
    assert multiprocessing.active_children() == []
    assert 0 < windows.shown < windows.total
    report = extract_cohort(one, tmp_path / "n.zarr", request("cpu,cpu"), MPPS, OPTIONS)
    assert report.done == ["E1"]
    assert report.windows <= windows.total - windows.shown


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
    Image.new("RGB", Image.open(image).size, (200, 30, 90)).save(image, quality=95)
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
        if x.std((2, 3)).max() < 0.05 and 0.4 < x[:, 0].mean() < 0.7:
            os.abort()
        return x.mean((2, 3))

def make():
    return EncoderSpec(
        name="mine", model=CustomModel(Net), input_px=32,
        preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        pooling=Pooling("own", text="means of the channels"), width=3,
    )
"""
