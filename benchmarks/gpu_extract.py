"""How fast slides are embedded on a card, whole and step by step, and whether the numbers are right."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from gpu_record import Figures, Record
from gpu_samples import sampled_threads
from numpy.typing import NDArray
from pyramid import MPP, spots_on_grid, write_pyramid
from torch.utils.flop_counter import FlopCounterMode

from mmap_st.data.cohort import CohortSlide
from mmap_st.encoders import EncoderSpec
from mmap_st.extract.encoders import Encoder, build_encoder, encoder_spec
from mmap_st.extract.encoders.networks.builders import build_random
from mmap_st.extract.encoders.spec import TimmModel
from mmap_st.extract.engine.device import DeviceQueue, StepGraph, keep_freed_memory
from mmap_st.extract.engine.pipeline import embed_slides
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.engine.planning.plan import PlanRequest, plan_slide, run_recipe
from mmap_st.extract.engine.session import open_session
from mmap_st.extract.engine.telemetry import Telemetry
from mmap_st.extract.slides.slide import open_slide
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.extract.windows.device_resizing import DeviceResizer
from mmap_st.extract.windows.read_plan import plan_reading
from mmap_st.extract.windows.reader import WindowReader

MPPS = (0.5, 1.0, 2.0)
#: Side of the slide in pixels, and how many spots 100 um apart fit on it.
SIDE, MOST_SPOTS = 40_960, 10_000
SLIDE = "slide.tif"
#: Windows that a thread reads at a time, as an extraction does.
STEP = 64


@dataclass(frozen=True)
class Scale:
    """How much is measured: on a card, or in a rehearsal.

    Attributes
    ----------
    tiny
        Whether networks are cut down to two narrow layers.
    seconds
        That one measurement should take.
    batch
        Windows that the network takes at a time.
    pilot
        Spots of the first run, from which the others' are found.
    parity, reference
        Windows that precisions are compared on, and how many of them the CPU embeds of a large network.
    """

    tiny: bool
    seconds: float
    batch: int
    pilot: int
    workers: tuple[int, ...]
    parity: int
    reference: int


ON_CARD = Scale(False, 6.0, 256, 1_000, (16, 8, 4), 256, 24)
REHEARSAL = Scale(True, 1.0, 32, 40, (2, 1), 24, 8)


@dataclass
class Bench:
    """A slide, a device, and what is measured with them.

    Attributes
    ----------
    rates
        Windows a second that were seen, by kind of measurement: they tell how many the next should have.
    """

    folder: Path
    device: str
    scale: Scale
    rates: dict[str, float] = field(default_factory=dict)
    resizers: dict[str, DeviceResizer | None] = field(default_factory=dict)
    encoders: dict[tuple[str, str, str, bool], Encoder] = field(default_factory=dict)

    def encoder(self, name: str, precision: str, device: str = "", compiled: bool = False) -> Encoder:
        """An encoder's architecture with random weights, built once."""
        key = name, precision, device or self.device, compiled
        if key not in self.encoders:
            self.encoders[key] = build_encoder(
                spec_of(name, self.scale.tiny),
                random_weights=True,
                device=device or self.device,
                precision=precision,
                batch_size=self.scale.batch,
                compiled=compiled,
            )
        return self.encoders[key]

    def resizer(self, resample: str) -> DeviceResizer | None:
        """Where windows are resized: on the device, or, as None says, on the CPU."""
        if resample not in self.resizers:
            self.resizers[resample] = DeviceResizer.of(self.device) if resample == "auto" else None
        return self.resizers[resample]

    def trial(self) -> Figures:
        """Whether the device makes the windows of a CPU, and how long that takes to find out."""
        began = time.perf_counter()
        return {"same": self.resizer("auto") is not None, "seconds": time.perf_counter() - began}

    def built(self, name: str, precision: str, compiled: bool = False) -> Figures:
        """Seconds of building an encoder."""
        began = time.perf_counter()
        encoder = self.encoder(name, precision, "", compiled)
        return {"seconds": time.perf_counter() - began, "width": encoder.width, "step": encoder.step}

    def extraction(self, name: str, workers: int, compiled: bool = False, graphs: bool = True) -> Figures:
        """All that `mmap extract` does once the encoder is built, for about as long as is wanted."""
        if not graphs:
            with _launched_kernel_by_kernel():
                return self.extraction(name, workers, compiled)
        encoder, kind = self.encoder(name, "bf16", "", compiled), f"extract {name} {compiled}"
        if kind not in self.rates:
            self.rates[kind] = self._extract(encoder, workers, self.scale.pilot)["windows_per_s"]
        spots = self._spots(self.rates[kind])
        found = self._extract(encoder, workers, spots)
        self.rates[kind] = found["windows_per_s"]
        return found

    def whole_slides(
        self, name: str, workers: int, resample: str = "auto", slides: int = 1, compiled: bool = False
    ) -> Figures:
        """Slides with as many spots as fit on one, and what the threads were busy with meanwhile."""
        encoder = self.encoder(name, "bf16", "", compiled)
        with sampled_threads(("MainThread", "write", "read_0")) as shares:
            spots = self.scale.pilot if self.scale.tiny else MOST_SPOTS
            found = self._extract(encoder, workers, spots, resample, slides)
        return {**found, "threads": shares}

    def reading(self, workers: int, resample: str = "auto") -> Figures:
        """Windows alone, into the memory from which the network takes them, or they would be copied."""
        kind = f"read {resample}"
        if kind not in self.rates:
            self.rates[kind] = self._read(workers, self.scale.pilot, resample)["windows_per_s"]
        found = self._read(workers, self._spots(self.rates[kind]), resample)
        self.rates[kind] = found["windows_per_s"]
        return found

    def forward(self, name: str, compiled: bool = False) -> Figures:
        """The network alone: the same windows again and again, by the queue that an extraction uses."""
        encoder = self.encoder(name, "bf16", "", compiled)
        queue: DeviceQueue[None] = DeviceQueue(encoder)
        px = encoder.spec.input_px
        windows = queue.allocate((self.scale.batch, px, px, 3))
        assert isinstance(windows, np.ndarray)
        windows[:] = np.random.default_rng(0).integers(0, 256, windows.shape, np.uint8)
        self._put(queue, windows, 0.0)  # one batch, to warm up
        queue.busy_s = 0.0
        began = time.perf_counter()
        batches = self._put(queue, windows, self.scale.seconds / 2)
        seconds = time.perf_counter() - began
        rate = batches * len(windows) / seconds
        return {
            "windows_per_s": rate,
            "device_windows_per_s": batches * len(windows) / queue.busy_s,
            "busy_share": queue.busy_s / seconds,
            **self._arithmetic(encoder.spec.name, rate),
        }

    def kernels(self, name: str, compiled: bool = False) -> Figures:
        """Which kernels a forward pass spends its time in: their share of it."""
        encoder = self.encoder(name, "bf16", "", compiled)
        px = encoder.spec.input_px
        pixels = torch.zeros(encoder.step, px, px, 3, dtype=torch.uint8, device=encoder.device)
        kinds = torch.profiler.ProfilerActivity
        activity = kinds.CUDA if self.device == "cuda" else kinds.CPU
        with torch.inference_mode():
            encoder.forward(pixels, encoder.step)
            with torch.profiler.profile(activities=[activity]) as profile:
                encoder.forward(pixels, encoder.step).sum().item()
        took = "self_device_time_total" if self.device == "cuda" else "self_cpu_time_total"
        times = {event.key: getattr(event, took) for event in profile.key_averages()}
        total = sum(times.values())
        longest = sorted(times, key=lambda key: -times[key])[:12]
        return {"ms": total / 1e3, "shares": {key[:100]: times[key] / total for key in longest}}

    def matrix_rate(self) -> Figures:
        """What the device's own bf16 products of large matrices reach."""
        side = 256 if self.scale.tiny else 8192
        a, b = (torch.randn(side, side, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(10):
            a @ b
        self._wait()
        began = time.perf_counter()
        for _ in range(40):
            a @ b
        self._wait()
        rate = 40 * 2 * side**3 / (time.perf_counter() - began)
        self.rates["matrix"] = rate
        return {"tflops": rate / 1e12, "side": side}

    def parity(self, name: str, reference: int) -> Figures:
        """Precisions on the device against its own fp32, and that against the CPU's on fewer windows."""
        windows = self._windows(self.scale.parity)
        exact = self.encoder(name, "fp32").embed(windows)
        cpu = self.encoder(name, "fp32", "cpu").embed(windows[:reference])
        found: Figures = {"windows": len(windows), "on_the_cpu": reference}
        found["fp32 to the CPU's"] = agreement(exact[:reference], cpu, cpu.mean(axis=0))
        for precision in ("bf16", "fp16"):
            half = self.encoder(name, precision).embed(windows)
            found[f"{precision} to fp32"] = agreement(half, exact, exact.mean(axis=0))
        return found

    def _spots(self, rate: float) -> int:
        wanted = rate * self.scale.seconds / len(MPPS)
        return int(min(max(wanted, self.scale.pilot), MOST_SPOTS))

    def _extract(
        self, encoder: Encoder, workers: int, spots: int, resample: str = "auto", slides: int = 1
    ) -> Figures:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        xy = spots_on_grid(spots, SIDE, SIDE)
        lines = ["id,pixel_x,pixel_y", *(f"s{i},{x},{y}" for i, (x, y) in enumerate(xy.tolist()))]
        (folder / "spots.csv").write_text("\n".join(lines))
        rows = [
            CohortSlide(
                f"slide{number}",
                image=self.folder / SLIDE,
                spots=folder / "spots.csv",
                reader="table",
                mpp=MPP,
                mpp_from="cohort",
            )
            for number in range(slides)
        ]
        resizer = self.resizer(resample)
        store = FeatureStore.create(folder / "features.zarr")
        options = ExtractOptions(self.scale.batch, workers)
        kept: list[tuple[float, int]] = []
        telemetry = Telemetry()
        with _timed_launches() as launches:
            began = time.perf_counter()
            recipe = run_recipe(encoder, 0.0)
            outcomes = embed_slides(
                [plan_slide(row, store, PlanRequest(recipe, MPPS)) for row in rows],
                lambda plan, stop: open_session(plan, store, encoder, options, stop, resizer),
                encoder,
                workers,
                on_slide_start=lambda session: None,
                on_batch_written=lambda _, count: kept.append((time.perf_counter(), count)),
                stop=lambda: False,
            )
            for outcome in outcomes:
                if outcome.failure is not None:
                    raise outcome.failure
                assert outcome.session is not None
                telemetry.add(outcome.session.telemetry)
            seconds = time.perf_counter() - began
        shutil.rmtree(folder)
        rate = telemetry.windows / seconds
        return {
            "workers": workers,
            "windows": telemetry.windows,
            "seconds": seconds,
            "windows_per_s": rate,
            "steady_windows_per_s": _steady(kept),
            "first_batch_after_s": kept[0][0] - began,
            "busy_share": telemetry.device_s / seconds,
            "read_wait_share": telemetry.read_wait_s / seconds,
            "launch_ms": 1e3 * float(np.median(launches)),
            "decodes_a_tile": telemetry.decodes / telemetry.tiles,
            **self._arithmetic(encoder.spec.name, rate),
        }

    def _read(self, workers: int, spots: int, resample: str) -> Figures:
        xy, px = spots_on_grid(spots, SIDE, SIDE), 224
        pinned = self.device == "cuda"
        began = time.perf_counter()
        slide = open_slide(self.folder / SLIDE)
        wanted = {mpp: np.arange(len(xy)) for mpp in MPPS}
        options = ExtractOptions(workers=workers)
        step = min(self.scale.batch, STEP)
        plan = plan_reading(slide.levels, xy, MPP, px, wanted, step, options.step_bytes)
        cache_bytes, resizer = options.cache_bytes(plan.most_tiles * plan.tile_bytes), self.resizer(resample)
        reader = WindowReader(slide, plan, cache_bytes, resizer)

        def read(step: int) -> int:
            shape = (int(np.diff(plan.step_windows)[step]), px, px, 3)
            if resizer is not None:
                return len(reader.read(step, torch.empty(shape, dtype=torch.uint8, device=self.device)))
            return len(reader.read(step, torch.empty(shape, dtype=torch.uint8, pin_memory=pinned).numpy()))

        count = 0
        with ThreadPoolExecutor(workers) as pool:
            waiting: deque[Any] = deque()
            for step in range(len(plan)):
                waiting.append(pool.submit(read, step))
                if len(waiting) > workers + 2:
                    count += waiting.popleft().result()
            while waiting:
                count += waiting.popleft().result()
        seconds = time.perf_counter() - began
        decodes = reader.decoded / len(plan.tiles)
        reader.close()
        slide.close()
        return {
            "workers": workers,
            "windows": count,
            "windows_per_s": count / seconds,
            "decodes_a_tile": decodes,
        }

    def _windows(self, count: int) -> NDArray[np.uint8]:
        """Windows of the slide, far from each other."""
        slide = open_slide(self.folder / SLIDE)
        xy = spots_on_grid(-(-count // len(MPPS)), SIDE, SIDE)
        plan = plan_reading(slide.levels, xy, MPP, 224, {mpp: np.arange(len(xy)) for mpp in MPPS}, count)
        reader = WindowReader(slide, plan, 1 << 28)
        pixels = np.array(reader.read(0).pixels[:count])
        reader.close()
        slide.close()
        return pixels

    def _put(self, queue: DeviceQueue[None], windows: NDArray[np.uint8], seconds: float) -> int:
        """Give the queue the same windows until so many seconds are over; how often."""
        began, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - began < seconds:
            queue.put(windows, None)
            count += 1
            while queue.full:
                queue.take()
        while len(queue):
            queue.take()
        return count

    def _arithmetic(self, name: str, rate: float) -> Figures:
        flops = flops_of(name, self.scale.tiny) * rate
        matrix = self.rates.get("matrix")
        return {"tflops": flops / 1e12, **({"matrix_share": flops / matrix} if matrix else {})}

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def spec_of(name: str, tiny: bool) -> EncoderSpec:
    """An encoder as it is declared, quick to build; layers count in full, so that precisions can be told."""
    spec = encoder_spec(name)
    assert isinstance(spec.model, TimmModel)
    kwargs = dict(spec.model.kwargs)
    if "init_values" in kwargs:
        kwargs["init_values"] = 1.0
    if tiny:
        kwargs |= {"embed_dim": 96, "depth": 2, "num_heads": 3}
    model = TimmModel(_quick(spec.model.arch), kwargs)
    return replace(spec, model=model, width=96 if tiny else spec.width)


@cache
def _quick(arch: str) -> str:
    """Name for timm a transformer that is built in a third of the time: weights as torch draws them."""

    def make(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
        network: torch.nn.Module = timm.create_model(arch, weight_init="skip", **kwargs)
        for name in ("cls_token", "pos_embed", "reg_token"):
            if getattr(network, name, None) is not None:
                torch.nn.init.normal_(getattr(network, name), std=0.02)
        return network

    make.__name__ = f"quick_{arch}"
    make.__module__ = __name__
    timm.models.register_model(make)
    return make.__name__


@cache
def flops_of(name: str, tiny: bool) -> float:
    """Floating point operations of one window, counted on a network without memory."""
    spec = spec_of(name, tiny)
    counter = FlopCounterMode(display=False)
    with torch.device("meta"):
        network = build_random(spec).network
        with counter, torch.inference_mode():
            network(torch.empty(1, 3, spec.input_px, spec.input_px), features=True)
    return float(counter.get_total_flops())


def agreement(found: NDArray[np.float32], exact: NDArray[np.float32], mean: NDArray[np.float32]) -> Figures:
    """How near embeddings (n, d) are to exact ones; `mean` is that of the exact ones.

    Embeddings by random weights are all alike: what tells windows apart is their difference from the mean.
    """

    def least_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
        return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())

    return {
        "max_abs": float(np.abs(found - exact).max()),
        "relative": float(np.linalg.norm(found - exact) / np.linalg.norm(exact - mean)),
        "min_cosine": least_cosine(found, exact),
        "min_cosine_around_mean": least_cosine(found - mean, exact - mean),
    }


def prepare_slide(folder: Path) -> Path:
    """Write the slide where it is not there, and read some windows, which compiles what reads them."""
    path = folder / SLIDE
    if not path.exists():
        draft = path.with_suffix(".partial")
        write_pyramid(draft, SIDE, SIDE, repeat_bytes=True)
        draft.replace(path)
    Bench(folder, "cpu", REHEARSAL).reading(1)
    return path


def run_extract(record: Record, device: str, folder: Path) -> None:
    """Measure, what matters most first."""
    keep_freed_memory()
    scale = ON_CARD if device == "cuda" else REHEARSAL
    bench = Bench(folder, device, scale)
    prepare_slide(folder)
    most, *fewer = scale.workers
    record.measure("matrix products, bf16", bench.matrix_rate)
    record.measure("windows resized on the device", bench.trial)
    record.measure("uni: build", lambda: bench.built("uni", "bf16"))
    record.measure("uni: forward", lambda: bench.forward("uni"))
    for workers in scale.workers:
        record.measure(f"read, {workers} workers", partial(bench.reading, workers))
    for workers, slides in ((most, 1), (fewer[-1], 1), (most, 3)):
        record.measure(
            f"uni: {slides} whole, {workers} workers",
            partial(bench.whole_slides, "uni", workers, slides=slides),
        )
    record.measure(
        f"uni: 1 whole, {most} workers, resized on the CPU", lambda: bench.whole_slides("uni", most, "cpu")
    )
    record.measure(f"read, {most} workers, resized on the CPU", lambda: bench.reading(most, "cpu"))
    record.measure("uni compiled: build", lambda: bench.built("uni", "bf16", compiled=True), 25.0)
    record.measure(
        f"uni compiled: 1 whole, {most} workers", lambda: bench.whole_slides("uni", most, compiled=True), 12.0
    )
    record.measure("uni compiled: forward", lambda: bench.forward("uni", compiled=True), 4.0)
    record.measure("uni: kernels", lambda: bench.kernels("uni"), 3.0)
    record.measure("lunit-vits16: parity", lambda: bench.parity("lunit-vits16", scale.parity), 8.0)
    record.measure("uni2-h: build", lambda: bench.built("uni2-h", "bf16"), 25.0)
    record.measure(f"uni2-h: extract, {most} workers", lambda: bench.extraction("uni2-h", most), 10.0)
    record.measure(
        f"uni2-h: extract, {most} workers, kernel by kernel",
        lambda: bench.extraction("uni2-h", most, graphs=False),
        10.0,
    )
    record.measure("uni2-h: forward", lambda: bench.forward("uni2-h"), 5.0)
    record.measure("uni compiled: kernels", lambda: bench.kernels("uni", compiled=True), 4.0)
    record.measure("uni: parity", lambda: bench.parity("uni", scale.reference), 25.0)


def _steady(kept: list[tuple[float, int]]) -> float:
    """Windows a second from the first batch on: what a run of many slides comes to."""
    (began, _), *others = kept
    return sum(count for _, count in others) / (others[-1][0] - began) if others else 0.0


@contextmanager
def _launched_kernel_by_kernel() -> Iterator[None]:
    """Without CUDA graphs, to compare with."""
    record = StepGraph.record
    StepGraph.record = classmethod(lambda *_: None)  # type: ignore[assignment]
    try:
        yield
    finally:
        StepGraph.record = record  # type: ignore[method-assign]


@contextmanager
def _timed_launches() -> Iterator[list[float]]:
    """Seconds that each batch takes to be given to the device: where that is long, the device waits."""
    seconds: list[float] = []
    put = DeviceQueue.put

    def timed(self: DeviceQueue[Any], windows: NDArray[np.uint8], tag: Any) -> None:
        began = time.perf_counter()
        put(self, windows, tag)
        seconds.append(time.perf_counter() - began)

    DeviceQueue.put = timed  # type: ignore[method-assign, assignment]
    try:
        yield seconds
    finally:
        DeviceQueue.put = put  # type: ignore[method-assign]
