"""Embedding on a card: the numbers of the CPU, in order, whatever the memory; skipped where there is none.

``MMAP_TEST_DEVICE=cpu`` runs the same code without a card, as a rehearsal.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.encoders import EncoderSpec
from mmap_st.extract.encoders import Encoder, build_encoder, encoder_spec
from mmap_st.extract.encoders.spec import TimmModel
from mmap_st.extract.engine.device import DeviceQueue
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.store.reader import FeatureStore

DEVICE = os.environ.get("MMAP_TEST_DEVICE", "cuda")
CUDA = DEVICE == "cuda"
pytestmark = pytest.mark.skipif(CUDA and not torch.cuda.is_available(), reason="no NVIDIA card answers here")

#: ViT-S/16 with layers that count in full: those of random weights would else hardly change anything.
VIT = replace(
    encoder_spec("lunit-vits16"),
    name="vits16",
    model=TimmModel("vit_small_patch16_224", {"init_values": 1.0, **({} if CUDA else {"depth": 2})}),
)
#: Two layers of it are as good to compile, in a sixth of the time.
SHALLOW = replace(VIT, model=TimmModel("vit_small_patch16_224", {"init_values": 1.0, "depth": 2}))
#: Most that embeddings may be from those of fp32, see `relative`; TF32 would be as far off as fp16.
MOST = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.15}


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    """(n, 224, 224, 3) smooth pictures, all different."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (64 if CUDA else 10, 14, 14, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((224, 224), 3)) for one in small])


@pytest.fixture(scope="module")
def reference(windows: np.ndarray) -> np.ndarray:
    """Embeddings of the windows on the CPU in fp32."""
    return built("cpu").embed(windows)


def built(device: str = DEVICE, spec: EncoderSpec = VIT, batch: int = 32, **options) -> Encoder:
    return build_encoder(spec, random_weights=True, device=device, batch_size=batch, **options)


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    """Length of the difference over that of what tells windows apart."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact - exact.mean(axis=0)))


def embedded(queue: DeviceQueue[int], batches: list[np.ndarray]) -> dict[int, np.ndarray]:
    """As a run does it: memory is given back as soon as a batch is put, and taken again for the next."""
    found = {}

    def take() -> None:
        tag, embedding = queue.take()
        found[tag] = embedding

    for number, batch in enumerate(batches):
        pixels = queue.allocate(batch.shape)
        pixels[:] = batch
        queue.put(pixels, number)
        del pixels
        while queue.full:
            take()
    while len(queue):
        take()
    return found


def test_fp32_is_fp32(windows, reference, record_property) -> None:
    found = relative(built().embed(windows), reference)
    record_property("relative", found)
    assert found < MOST["fp32"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(windows, reference, record_property, precision: str) -> None:
    embedding = built(precision=precision).embed(windows)
    assert embedding.dtype == np.float32
    found = relative(embedding, reference)
    record_property("relative", found)
    assert 0 < found < MOST[precision]


def test_windows_lie_in_memory_from_which_copies_need_no_wait() -> None:
    pixels = DeviceQueue(built()).allocate((4, 224, 224, 3))
    assert torch.from_numpy(pixels).is_pinned() == CUDA
    assert torch.from_numpy(pixels[1:3]).is_pinned() == CUDA
    pixels[:] = 7
    assert (pixels == 7).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_queue_gives_what_one_batch_at_a_time_gives(windows, record_property, precision: str) -> None:
    encoder = built(precision=precision, batch=8)
    rng = np.random.default_rng(1)
    sizes = (8, 3, 1, 16, 8, 5, 21, 8, 8, 2) * (8 if CUDA else 1)
    batches = [windows[rng.integers(0, len(windows), size)] for size in sizes]
    queue: DeviceQueue[int] = DeviceQueue(encoder)
    found = embedded(queue, batches)
    assert list(found) == list(range(len(batches)))
    furthest = max(np.abs(found[i] - encoder.embed(batch)).max() for i, batch in enumerate(batches))
    record_property("furthest", float(furthest))
    assert furthest == 0
    assert queue.busy_s > 0
    assert (queue.recorded is not None) == CUDA


def waits(module, inputs, output: torch.Tensor) -> None:
    """What a network does that asks the device for a number."""
    assert np.isfinite(output.sum().item())


def draws(module, inputs, output: torch.Tensor) -> torch.Tensor:
    """What a network does that gives other numbers each time."""
    return output + torch.rand_like(output)


@pytest.mark.parametrize("hook", [waits, draws])
def test_what_cannot_be_recorded_is_launched_kernel_by_kernel(windows, hook) -> None:
    encoder = built(batch=8)
    exact = encoder.embed(windows[:8])
    encoder._model.register_forward_hook(hook)
    queue: DeviceQueue[int] = DeviceQueue(encoder)
    found = embedded(queue, [windows[:8]] * 5)
    assert queue.recorded is None
    assert len(found) == 5
    for embedding in found.values():
        assert (
            np.abs(embedding - exact).max() == 0 if hook is waits else 0 < np.abs(embedding - exact).max() < 2
        )
    # The device is as it was: another network is recorded still.
    again: DeviceQueue[int] = DeviceQueue(built(batch=8))
    assert np.array_equal(embedded(again, [windows[:8]] * 3)[2], exact)
    assert (again.recorded is not None) == CUDA


@contextmanager
def little_memory(encoder: Encoder, windows: np.ndarray, monkeypatch) -> Iterator[None]:
    """Let the device have memory for fewer windows at a time than the encoder takes."""
    if not CUDA:
        forward, room = Encoder.forward, encoder.step // 2

        def refusing(self: Encoder, pixels: torch.Tensor, step: int) -> torch.Tensor:
            if len(pixels) > room:
                raise torch.OutOfMemoryError("out of memory")
            return forward(self, pixels, step)

        with monkeypatch.context() as patch:
            patch.setattr(Encoder, "forward", refusing)
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    encoder.embed(windows[: encoder.step])
    needed = torch.cuda.max_memory_allocated() - held
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.6 * needed) / whole)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_without_memory_it_takes_fewer_and_loses_nothing(
    windows, reference, record_property, monkeypatch
) -> None:
    batch = 256 if CUDA else 4
    encoder = built(batch=batch)
    times = -(-batch * 3 // len(windows)) if CUDA else 1
    many, exact = np.concatenate([windows] * times), np.concatenate([reference] * times)
    encoder.embed(many[:batch])  # what libraries keep for themselves is there before it is measured
    queue: DeviceQueue[int] = DeviceQueue(encoder)
    with little_memory(encoder, many, monkeypatch):
        found = embedded(queue, [many[:batch], many[batch : batch + 7], many])
    record_property("step", queue.step)
    assert 1 <= queue.step < encoder.step
    for number, expected in enumerate((exact[:batch], exact[batch : batch + 7], exact)):
        assert np.allclose(found[number], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_network_gives_the_same(windows, record_property, precision: str) -> None:
    plain, compiled = (
        built(spec=SHALLOW, batch=16, precision=precision, compiled=wanted) for wanted in (False, True)
    )
    part = windows[: 21 if CUDA else 6]  # the last step is not full
    found = relative(compiled.embed(part), plain.embed(part))
    record_property("relative", found)
    assert found < MOST[precision]
    queue: DeviceQueue[int] = DeviceQueue(compiled)
    assert np.array_equal(embedded(queue, [part])[0], compiled.embed(part))


def extracted(
    slide: Path, store: Path, device: str, resample: str = "auto", workers: int = 4, **request
) -> FeatureStore:
    row = CohortSlide(
        "S", image=slide, spots=slide.parent / "spots.csv", reader="table", mpp=0.25, mpp_from="cohort"
    )
    report = extract_cohort(
        Cohort((row,), "made"),
        store,
        EncoderRequest(VIT, random_weights=True, device=device, **request),
        (0.5, 1.0),
        ExtractOptions(None if device == "cpu" else 16, workers, resample=resample),
    )
    assert not report.failed
    assert report.telemetry.device_s > 0
    return FeatureStore.open(store)


def embeddings(store: FeatureStore) -> np.ndarray:
    found = store.slide("S").complete("vits16")
    assert all(one.valid().all() for one in found.values())
    return np.concatenate([one.embedding() for one in found.values()])


def test_an_extraction_gives_the_store_of_a_cpu(tmp_path: Path, pyramid, record_property) -> None:
    slide = pyramid(tmp_path / "S.tif", spots=60 if CUDA else 6)
    exact = embeddings(extracted(slide, tmp_path / "cpu.zarr", "cpu", precision="fp32"))
    for precision in ("fp32", "bf16"):
        found = embeddings(extracted(slide, tmp_path / f"{precision}.zarr", DEVICE, precision=precision))
        record_property(precision, relative(found, exact))
        assert found.shape == exact.shape
        # The store keeps float16: what differs in the last bit of a float32 may round to its neighbour there.
        assert relative(found, exact) < max(MOST[precision], 2**-11)
        assert (np.abs(found - exact).max() > 0) == (CUDA or precision == "bf16")


@pytest.mark.parametrize("workers", [1, 8])
def test_windows_are_the_same_wherever_they_are_resized(
    tmp_path: Path, pyramid, record_property, workers: int, caplog
) -> None:
    slide = pyramid(tmp_path / "S.tif", spots=100 if CUDA else 6)
    with caplog.at_level("INFO", "mmap_st"):
        here, there = (
            embeddings(extracted(slide, tmp_path / f"{where}.zarr", DEVICE, where, workers, precision="fp32"))
            for where in ("auto", "cpu")
        )
    on_cpu = [line for line in caplog.messages if "resized on the CPU" in line]
    record_property("resized on the CPU", "; ".join(on_cpu))
    assert not on_cpu
    assert np.array_equal(here, there)
