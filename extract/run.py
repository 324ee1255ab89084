"""An extraction run: every spot of every slide of a cohort, at every magnification, into a store."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmap_st.data.cohort import Cohort
from mmap_st.errors import (
    ImageError,
    MmapError,
    RecipeMismatchError,
    RegionError,
    SlideError,
    StoppedError,
    StoreError,
)
from mmap_st.extract.encoders import Encoder, EncoderSpec, build_encoder
from mmap_st.extract.grid import GridRequest
from mmap_st.extract.lock import slide_lock
from mmap_st.extract.placement import gets_spots
from mmap_st.extract.plan import SlidePlan, check_run_recipe, check_width, plan_slide, stored_precision
from mmap_st.extract.progress import Progress, Silent
from mmap_st.extract.recipe import run_recipe
from mmap_st.extract.resample import read_window
from mmap_st.extract.slide import Slide, open_slide
from mmap_st.extract.store import FeatureStore, encode_name, holds_anything
from mmap_st.extract.store_write import MagnificationWriter, write_slide
from mmap_st.extract.windows import mpp_key, share_in_bounds, window_boxes

_LOG = logging.getLogger(__name__)
_LARGEST_INVALID_SHARE = 0.05


@dataclass(frozen=True)
class ExtractOptions:
    """How a run goes about its work; none of it changes an embedding.

    Attributes
    ----------
    batch_size
        Windows handed to the encoder at a time.
    workers
        Threads that read and resample windows.
    chunk
        Rows of a chunk of the store: what a killed run loses at most, per magnification.
    overwrite
        Replace what another recipe made.
    """

    batch_size: int = 32
    workers: int = 2
    chunk: int = 1024
    overwrite: bool = False


@dataclass
class ExtractReport:
    """What a run did.

    Attributes
    ----------
    done
        Slides that are complete now, and had something to do.
    kept
        Slides that were complete before.
    passed_over
        Slides whose cohort row has no image, or no spots.
    gridded
        Slides whose spots are a grid on their tissue, of those done, kept or failed while embedded.
    failed
        Reason of every slide that could not be done.
    windows, seconds
        Windows embedded by this run, and the time it took.
    invalid
        Windows that could not be read, of the slides done.
    """

    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    gridded: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    windows: int = 0
    invalid: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class EncoderRequest:
    """Which encoder to build, and how; `precision` may be ``auto``."""

    spec: EncoderSpec
    weights: Path | None = None
    random_weights: bool = False
    device: str = "auto"
    precision: str = "auto"


def extract_cohort(
    cohort: Cohort,
    store_path: Path,
    request: EncoderRequest,
    mpps: Sequence[float],
    options: ExtractOptions | None = None,
    progress: Progress | None = None,
    *,
    grid: GridRequest | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> ExtractReport:
    """Embed every spot of a cohort.

    Parameters
    ----------
    cohort
        Slides; rows without an image, or without spots where no grid is asked for, are passed over.
    store_path
        Folder of the feature store; made where there is none.
    request
        The encoder. ``auto`` precision takes what the store has for it, else fp32.
    mpps
        Micrometres per pixel of the windows, finest first.
    options, progress
        How, and who listens.
    grid
        Laid on the tissue of slides that have no spot table; the others keep their own spots.
    stop
        Asked before each batch; True ends the run there.

    Returns
    -------
    What was done; slides that failed are in it, with their reasons.

    Raises
    ------
    RequestError
        If nothing can be done at all: no such encoder, another recipe, no store.
    StoppedError
        If `stop` asked for it; finished chunks are kept.
    """
    options, progress = options or ExtractOptions(), progress or Silent()
    started = time.perf_counter()
    store = FeatureStore.open(store_path) if holds_anything(store_path) else None
    precision = request.precision
    if precision == "auto":
        precision = (stored_precision(store, request.spec.name) if store else None) or "fp32"
    encoder = build_encoder(
        request.spec,
        weights=request.weights,
        random_weights=request.random_weights,
        device=request.device,
        precision=precision,
    )
    shared = run_recipe(encoder)
    # A store is made only now that the request is known to be one that can be met.
    store = FeatureStore.create(store_path)
    if not options.overwrite:
        check_run_recipe(store, shared)
    replaced = {(row.slide, mpp) for row in cohort.slides for mpp in mpps} if options.overwrite else set()
    check_width(store, request.spec.name, encoder.width, replaced)

    report = ExtractReport()
    plans: list[SlidePlan] = []
    for row in cohort.slides:
        if stop():
            raise StoppedError("stopped before the first slide")
        if not gets_spots(row, grid):
            report.passed_over.append(row.slide)
            continue
        try:
            plan = plan_slide(row, store, shared, mpps, overwrite=options.overwrite, grid=grid)
        except SlideError as error:
            _fail(report, row.slide, error)
            continue
        if plan.made_by is not None:
            report.gridded.append(row.slide)
        if plan.recipes:
            plans.append(plan)
        else:
            report.kept.append(row.slide)
    if grid is not None:
        own = sum(row.image is not None and row.spots is not None for row in cohort.slides)
        progress.note(f"{len(report.gridded)} slides get the spots of {grid}; {own} have spots of their own")
    progress.begin(len(plans), sum(plan.windows for plan in plans))
    for mpp in mpps:
        _note_enlarged(mpp, plans, progress)
    for plan in plans:
        progress.slide(plan.info.name)
        try:
            with slide_lock(store.path, encode_name(plan.info.name)):
                _extract_slide(plan, store, encoder, options, progress, report, stop)
        except (SlideError, StoreError, RecipeMismatchError) as error:
            _fail(report, plan.info.name, error)
        else:
            report.done.append(plan.info.name)
    report.seconds = time.perf_counter() - started
    return report


def _note_enlarged(mpp: float, plans: Sequence[SlidePlan], progress: Progress) -> None:
    """Say so where windows are finer than the slides: allowed, but they hold no more than the slide does."""
    finer = [plan.source.mpp for plan in plans if mpp in plan.recipes and mpp < plan.source.mpp * 0.999]
    if finer:
        scales = f"{min(finer):.4g}" if len(finer) == 1 else f"{min(finer):.4g} to {max(finer):.4g}"
        progress.note(
            f"windows at {mpp_key(mpp)} um/px are finer than {len(finer)} of the slides ({scales} um/px)"
            f" and are enlarged, up to {max(finer) / mpp:.2f} times"
        )


def _fail(report: ExtractReport, name: str, error: MmapError) -> None:
    _LOG.info("slide %s failed: %s", name, error)
    report.failed[name] = str(error)


def _extract_slide(
    plan: SlidePlan,
    store: FeatureStore,
    encoder: Encoder,
    options: ExtractOptions,
    progress: Progress,
    report: ExtractReport,
    stop: Callable[[], bool],
) -> None:
    write_slide(store, plan.info, plan.spots, plan.made_by)
    slide = open_slide(plan.image)
    try:
        with ThreadPoolExecutor(options.workers, thread_name_prefix="window") as readers:
            try:
                for mpp in plan.recipes:
                    _extract_magnification(
                        plan, mpp, slide, store, encoder, options, readers, progress, report, stop
                    )
            finally:
                readers.shutdown(wait=True, cancel_futures=True)
    finally:
        slide.close()


def _extract_magnification(
    plan: SlidePlan,
    mpp: float,
    slide: Slide,
    store: FeatureStore,
    encoder: Encoder,
    options: ExtractOptions,
    readers: ThreadPoolExecutor,
    progress: Progress,
    report: ExtractReport,
    stop: Callable[[], bool],
) -> None:
    writer = MagnificationWriter(
        store,
        plan.info.name,
        encoder.spec.name,
        mpp,
        plan.recipes[mpp],
        (len(plan.spots), encoder.width),
        chunk=options.chunk,
        overwrite=options.overwrite,
    )
    pending = writer.pending()
    kept = len(plan.spots) - sum(len(writer.rows(index)) for index in pending)
    progress.advance(kept)
    _LOG.info(
        "slide %s, %s um/px: %d of %d chunks to do, %d kept",
        plan.info.name, mpp_key(mpp), len(pending), writer.n_chunks, writer.n_chunks - len(pending),
    )  # fmt: skip
    input_px = encoder.spec.input_px
    boxes = window_boxes(plan.spots.xy, mpp, input_px, plan.source.mpp)
    in_bounds = share_in_bounds(boxes, slide.size)
    batches = [
        (index, rows[start : start + options.batch_size])
        for index in pending
        for rows in (writer.rows(index),)
        for start in range(0, len(rows), options.batch_size)
    ]
    windows = _read_ahead(slide, boxes, batches, input_px, readers, options.batch_size)
    embedding = np.empty((0, encoder.width), np.float32)
    valid = np.empty(0, np.bool_)
    for (index, rows), (pixels, readable) in zip(batches, windows, strict=True):
        if stop():
            raise StoppedError(f"stopped in slide {plan.info.name}")
        embedding = np.concatenate([embedding, encoder.embed(pixels)])
        valid = np.concatenate([valid, readable])
        progress.advance(len(rows))
        report.windows += len(rows)
        chunk = writer.rows(index)
        if rows[-1] == chunk[-1]:
            unusable = valid & ~np.isfinite(embedding).all(axis=1)
            if unusable.any():
                raise ImageError(
                    f"{int(unusable.sum())} embeddings of readable windows are not finite at"
                    f" {mpp_key(mpp)} um/px and precision {encoder.precision}; try --precision fp32."
                )
            writer.write_chunk(index, embedding, valid, in_bounds[chunk.start : chunk.stop])
            embedding, valid = embedding[:0], valid[:0]
    _publish(writer, plan, mpp, encoder, progress, report)


def _publish(
    writer: MagnificationWriter,
    plan: SlidePlan,
    mpp: float,
    encoder: Encoder,
    progress: Progress,
    report: ExtractReport,
) -> None:
    invalid = writer.count_invalid()
    if invalid > _LARGEST_INVALID_SHARE * len(plan.spots):
        writer.discard()
        raise ImageError(
            f"{invalid} of {len(plan.spots)} windows at {mpp_key(mpp)} um/px cannot be read from"
            f" {plan.image}; copy the file again."
        )
    if invalid:
        progress.note(f"{plan.info.name}: {invalid} windows at {mpp_key(mpp)} um/px cannot be read")
        report.invalid += invalid
    writer.finish({"device": encoder.device, "host_cpus": os.cpu_count()})


def _read_ahead(
    slide: Slide,
    boxes: NDArray[np.float64],
    batches: Sequence[tuple[int, range]],
    input_px: int,
    readers: ThreadPoolExecutor,
    batch_size: int,
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    """Yield each batch's windows and which of them could be read, reading two batches ahead."""
    rows = iter([row for _, batch in batches for row in batch])
    ahead: deque[Future[NDArray[np.uint8] | None]] = deque()

    def top_up() -> None:
        while len(ahead) < 2 * batch_size:
            row = next(rows, None)
            if row is None:
                return
            ahead.append(readers.submit(_window_or_none, slide, boxes[row], input_px))

    for _, batch in batches:
        pixels = np.full((len(batch), input_px, input_px, 3), 255, np.uint8)
        readable = np.zeros(len(batch), np.bool_)
        for i in range(len(batch)):
            top_up()
            window = ahead.popleft().result()
            if window is not None:
                pixels[i], readable[i] = window, True
        top_up()
        yield pixels, readable


def _window_or_none(slide: Slide, box: NDArray[np.float64], input_px: int) -> NDArray[np.uint8] | None:
    try:
        return read_window(slide, box.tolist(), input_px)
    except RegionError as error:
        _LOG.warning("%s", error)
        return None
