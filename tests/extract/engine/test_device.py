"""The device's queue: in order, whole, and on through a lack of memory; the same tests on every device there is."""

import numpy as np
import pytest
import torch

from mmap_st.errors import DeviceError, RequestError, StoppedError
from mmap_st.extract.encoders import Encoder, build_encoder, encoder_spec
from mmap_st.extract.encoders.build import device_of
from mmap_st.extract.engine.device import DeviceQueue

DEVICES = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
SPEC = encoder_spec("timm:test_efficientnet")


@pytest.fixture(scope="module", params=DEVICES)
def encoder(request) -> Encoder:
    return build_encoder(SPEC, random_weights=True, device=request.param, batch_size=4)


def batches(sizes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, SPEC.input_px, SPEC.input_px, 3), np.uint8) for size in sizes]


def embedded(queue: DeviceQueue[int], windows: list[np.ndarray]) -> dict[int, np.ndarray]:
    found = {}
    for number, batch in enumerate(windows):
        pixels = queue.allocate(batch.shape)
        pixels[:] = batch
        queue.put(pixels, number)
        while queue.full:
            tag, embedding = queue.take()
            found[tag] = embedding
    while len(queue):
        tag, embedding = queue.take()
        found[tag] = embedding
    return found


def close(a: np.ndarray, b: np.ndarray, encoder: Encoder) -> bool:
    """To the bit on a CPU; a GPU may round otherwise for another number of windows."""
    return np.array_equal(a, b) if encoder.device == "cpu" else np.allclose(a, b, rtol=1e-3, atol=1e-5)


def test_batches_come_back_in_order_each_with_its_tag(encoder: Encoder) -> None:
    windows = batches((8, 3, 1, 8, 5, 8, 8))
    found = embedded(DeviceQueue(encoder), windows)
    assert list(found) == list(range(len(windows)))
    for number, batch in enumerate(windows):
        assert close(found[number], encoder.embed(batch), encoder)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("MPS backend out of memory"),
        MemoryError(),
    ],
)
def test_without_memory_it_takes_half_as_many_and_loses_nothing(encoder: Encoder, error, monkeypatch) -> None:
    forward, room = Encoder.forward, 1

    def little_memory(self: Encoder, pixels: torch.Tensor, step: int) -> torch.Tensor:
        if len(pixels) > room:
            raise error
        return forward(self, pixels, self.step)

    windows = batches((8, 3, 8))
    expected = [encoder.embed(batch) for batch in windows]
    monkeypatch.setattr(Encoder, "forward", little_memory)
    queue: DeviceQueue[int] = DeviceQueue(encoder)
    found = embedded(queue, windows)
    assert queue.step == room
    assert all(close(found[i], expected[i], encoder) for i in range(3))


def test_without_memory_for_one_window_it_says_so(encoder: Encoder, monkeypatch) -> None:
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Encoder, "forward", no_memory)
    with pytest.raises(DeviceError, match="too little memory for one window"):
        DeviceQueue(encoder).put(batches((4,))[0], 0)


def test_other_errors_are_not_taken_for_a_lack_of_memory(encoder: Encoder, monkeypatch) -> None:
    def defect(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Encoder, "forward", defect)
    queue: DeviceQueue[int] = DeviceQueue(encoder)
    with pytest.raises(RuntimeError, match="shapes"):
        queue.put(batches((4,))[0], 0)
    assert len(queue) == 0


def test_it_stops_between_two_steps_of_a_batch(encoder: Encoder) -> None:
    answers = iter([False, True])
    queue: DeviceQueue[int] = DeviceQueue(encoder, lambda: next(answers))
    with pytest.raises(StoppedError):
        queue.put(batches((12,))[0], 0)
    assert len(queue) == 0


def test_devices_are_named_alike_and_others_refused() -> None:
    assert device_of("cpu:0") == "cpu"
    for name in ("meta", "toaster", "cuda:99"):
        with pytest.raises(RequestError, match="is not available on this machine"):
            device_of(name)
