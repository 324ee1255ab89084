"""One slide in flight: its lock, its open image, what is read of it, where its rows go, and its timings."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import (
    ImageError,
    MmapError,
    OverviewError,
    SlideDoneError,
    StoppedError,
    TissueError,
    printable,
)
from mmap_st.extract.encoders import Encoder
from mmap_st.extract.engine.planning import (
    IMAGE_FROM,
    ExtractOptions,
    PendingSlide,
    Planned,
    SlidePlan,
    at_hand,
    check_orientation,
    image_fingerprint,
    origin,
    unchanged_slide,
)
from mmap_st.extract.engine.telemetry import Telemetry
from mmap_st.extract.slides import (
    Slide,
    Tissue,
    find_tissue,
    open_slide,
    share_of_tissue,
)
from mmap_st.extract.store import (
    FeatureStore,
    Journal,
    MagnificationRows,
    MagnificationWriter,
    Publication,
    SlideLease,
    SlideLock,
    differences,
    encode_name,
    journal_path,
    present,
    undamaged_slide,
    versions,
    write_slide,
    write_telemetry,
)
from mmap_st.extract.windows import (
    DeviceResizer,
    ReadPlan,
    WindowReader,
    mpp_key,
    plan_reading,
    share_in_bounds,
    window_boxes,
)
from mmap_st.files import sha256_of_json

_LOG = logging.getLogger(__name__)
#: Most of a batch's rows in float32: several batches are in flight at a time, and tokens make rows long.
_BATCH_BYTES = 64 << 20
#: Most windows that one thread reads at a time: the parts of a batch are read side by side, so that the first
#: batch is ready soon and the tiles of all threads fit into little memory.
_STEP_WINDOWS = 64


@dataclass
class SlideSession:
    """A slide that is being embedded.

    Attributes
    ----------
    plan
        What is to be done.
    rows
        Where the rows of each magnification go, as the read plan numbers them.
    reading
        What is read.
    reader
        Reads it.
    batches
        Steps of reading that are embedded together.
    image
        What is read: the slide's image, or its copy on a local disk.
    origin
        Where that was fetched from; None where it was not.
    planned_now
        Whether it was planned when it was opened.
    finished
        Windows that need no embedding: finished before, or skipped.
    publication, lease
        Where the slide is published, and the lease on it there; None: it stays in its store.
    failure
        Why the slide failed, once it did.
    closed
        Whether image and journals are closed and the lock is released.
    """

    plan: SlidePlan
    encoder: Encoder
    store: FeatureStore
    rows: tuple[MagnificationRows, ...]
    reading: ReadPlan
    reader: WindowReader
    batches: tuple[range, ...]
    image: Path
    finished: int
    telemetry: Telemetry
    lock: SlideLock
    publication: Publication | None
    lease: SlideLease | None
    _resources: ExitStack
    origin: dict[str, object] | None = None
    planned_now: bool = False
    failure: MmapError | None = None
    closed: bool = False

    @property
    def name(self) -> str:
        """Of the slide."""
        return self.plan.info.name

    def save(
        self,
        source_of: NDArray[np.int32],
        row_of: NDArray[np.int64],
        readable: NDArray[np.bool_],
        embedding: NDArray[np.float32],
    ) -> None:
        """Save a batch: magnification, spot, readability (b,) and embedding (b, d) of each window.

        Raises
        ------
        SlideError, StoreError
            If the slide cannot continue.
        """
        unusable = readable & ~np.isfinite(embedding).all(axis=1)
        if unusable.any():
            mpp = self.rows[int(source_of[np.argmax(unusable)])].mpp
            raise ImageError(
                f"{int(unusable.sum())} embeddings of readable windows are not finite at {mpp_key(mpp)} um/px"
                f" and precision {self.encoder.precision};"
                f" {'look at its weights' if self.encoder.precision == 'fp32' else 'try --precision fp32'}."
            )
        with present(self.store.folder):
            self.lock.check()
            for number, rows in enumerate(self.rows):
                mine = source_of == number
                if mine.any():
                    rows.add(row_of[mine], embedding[mine], readable[mine])
        self.telemetry.windows += len(row_of)

    def publish(self) -> None:
        """Mark all magnifications as complete; the slide is done then."""
        self.telemetry.decodes = self.reader.decoded
        self.telemetry.end()
        with present(self.store.folder):
            self.lock.check()
            if self.telemetry.windows:
                write_telemetry(self.store, self.name, self.encoder.spec.name, self.telemetry.summary())
            record: dict[str, object] = {
                "device": self.encoder.device,
                "compiled": self.encoder.compiled,
                "host_cpus": os.cpu_count(),
                "versions": versions(),
                **({} if self.origin is None else {IMAGE_FROM: self.origin}),
            }
            for rows in self.rows:
                rows.finish(record)
        if self.publication is not None and self.lease is not None:
            mpps = [rows.mpp for rows in self.rows]
            self.publication.publish(self.store, self.name, self.encoder.spec.name, mpps, self.lease)
        _LOG.info("slide %s: %s", printable(self.name), self.telemetry)

    def close(self) -> None:
        """Close the image and the journals, and release the lock."""
        self._resources.close()
        self.closed = True


@dataclass(frozen=True)
class Outcome:
    """How a slide ended.

    Attributes
    ----------
    plan
        What was to be done.
    session
        None if it could not even be opened.
    failure
        None if it is done.
    """

    plan: Planned
    session: SlideSession | None
    failure: MmapError | None


def open_session(
    planned: Planned,
    store: FeatureStore,
    encoder: Encoder,
    options: ExtractOptions,
    stop: Callable[[], bool] = lambda: False,
    resizer: DeviceResizer | None = None,
) -> SlideSession:
    """Lock a slide, open it, and find what of it is still to be read.

    Parameters
    ----------
    resizer
        Resizes windows on the encoder's GPU where that has the memory; None: the CPU does.

    Raises
    ------
    SlideError, StoreError, RecipeMismatchError
        If it cannot be embedded, or need not be; nothing is held then.
    StoppedError
        If `stop` requests it.
    """
    with ExitStack() as resources:
        resources.enter_context(present(store.folder))
        key = encode_name(planned.name)
        lock = resources.enter_context(SlideLock(store.folder, key, stop=stop, patient=not options.claim))
        there, lease, publication = store, None, options.publish
        if publication is not None:
            lease = resources.enter_context(publication.lease(planned.name, stop, patient=not options.claim))
            there = FeatureStore.open(publication.url)
        if options.claim and _is_complete(planned, there, encoder.spec.name):
            raise SlideDoneError("another job has embedded it meanwhile.")
        image, files = at_hand(planned.image, options, resources, stop)
        plan = planned.planned(image, there) if isinstance(planned, PendingSlide) else planned
        slide = open_slide(image)
        resources.callback(slide.close)
        found = None if files is None else origin(files, slide.mpp)
        if not plan.recipes:
            assert isinstance(planned, PendingSlide)
            assert found is not None
            raise unchanged_slide(there, plan, encoder.spec.name, planned.request.mpps, found)
        _check_same_image(plan, image, slide)
        if publication is not None:
            publication.discard_other(store, plan.info, plan.spots)
        tissue = _tissue(slide, plan, options.tissue_min)
        if tissue is not None and not options.unchecked and _is_new(plan, there):
            check_orientation(plan.spots, tissue, slide.size)
        write_slide(store, plan.info, plan.spots, plan.made_by)
        mpps = sorted(plan.recipes)
        boxes = {
            mpp: window_boxes(plan.spots.xy, mpp, encoder.spec.input_px, plan.source.mpp) for mpp in mpps
        }
        rows = []
        for mpp in mpps:
            in_bounds = share_in_bounds(boxes[mpp], slide.size)
            rows.append(
                _rows(plan, mpp, store, encoder, options, lock, in_bounds, _shares(tissue, boxes[mpp]))
            )
            resources.callback(rows[-1].close)
        if stop():
            raise StoppedError("stopped while opening a slide")
        batch = options.batch_size or encoder.step * (8 if encoder.device == "cpu" else 1)
        batch = max(1, min(batch, _BATCH_BYTES // (4 * encoder.row_width)))
        step = -(-batch // -(-batch // _STEP_WINDOWS))
        reading = plan_reading(
            slide.levels,
            plan.spots.xy,
            plan.source.mpp,
            encoder.spec.input_px,
            {mpp: of.missing for mpp, of in zip(mpps, rows, strict=True)},
            step,
            options.step_bytes,
        )
        _LOG.info("slide %s: %s", printable(plan.info.name), reading)
        tiles_bytes = reading.most_tiles * reading.tile_bytes
        cache_bytes = options.cache_bytes(tiles_bytes, reading.bytes_to_decode_once)
        if resizer is not None and not resizer.suits(reading, options.threads):
            resizer = None
        reader = WindowReader(slide, reading, cache_bytes, resizer)
        resources.callback(reader.close)
        return SlideSession(
            plan=plan,
            encoder=encoder,
            store=store,
            rows=tuple(rows),
            reading=reading,
            reader=reader,
            batches=_batches(reading, batch),
            image=image,
            finished=plan.windows - reading.windows,
            telemetry=Telemetry(tiles=reading.blocks),
            lock=lock,
            publication=publication,
            lease=lease,
            _resources=resources.pop_all(),
            origin=found,
            planned_now=isinstance(planned, PendingSlide),
        )


def _batches(reading: ReadPlan, windows: int) -> tuple[range, ...]:
    """Cut the steps of a plan into batches of about this many windows."""
    together = max(1, windows // reading.windows_a_step)
    return tuple(range(i, min(i + together, len(reading))) for i in range(0, len(reading), together))


def _rows(
    plan: SlidePlan,
    mpp: float,
    store: FeatureStore,
    encoder: Encoder,
    options: ExtractOptions,
    lock: SlideLock,
    in_bounds: NDArray[np.float32],
    tissue: NDArray[np.float32],
) -> MagnificationRows:
    slide, name, recipe = plan.info.name, encoder.spec.name, plan.recipes[mpp]
    writer = MagnificationWriter(
        store,
        slide,
        name,
        mpp,
        recipe,
        (len(plan.spots), encoder.width),
        chunk=options.chunk,
        tokens=(encoder.tokens, encoder.token_width),
        # What an earlier run left on the way to a bucket is nobody's: of another recipe, it is replaced.
        overwrite=options.overwrite or options.publish is not None,
    )
    path = journal_path(store.folder, encode_name(slide), encode_name(name), mpp_key(mpp))
    journal = Journal(path, sha256_of_json(recipe), len(plan.spots), encoder.row_width)
    if writer.started_anew:
        journal.clear()
    skipped = tissue < options.tissue_min if options.tissue_min else np.zeros(len(tissue), np.bool_)
    return MagnificationRows(mpp, writer, journal, lock.check, in_bounds, tissue, skipped)


def _check_same_image(plan: SlidePlan, image: Path, slide: Slide) -> None:
    """Refuse an image that was replaced since the run was planned, which may be hours ago."""
    planned = next(iter(plan.recipes.values()))["image"]
    if image_fingerprint(image, slide.size) != planned:
        raise ImageError(f"{plan.image} was changed during the run; run the same command again.")


def _is_complete(plan: Planned, store: FeatureStore, encoder: str) -> bool:
    """Whether all that was to be made is there now, made by the same recipes."""
    if isinstance(plan, PendingSlide):
        now = plan.again(store)
        return isinstance(now, SlidePlan) and not now.recipes
    slide = undamaged_slide(store, plan.info.name)
    there = {} if slide is None else {one.mpp: one for one in slide.undamaged(encoder)}
    return all(
        mpp in there and there[mpp].complete and not differences(there[mpp].recipe, recipe)
        for mpp, recipe in plan.recipes.items()
    )


def _is_new(plan: SlidePlan, store: FeatureStore) -> bool:
    """Whether the spots are those of a spot table, and nothing of the slide is complete with them yet."""
    if plan.made_by is not None:
        return False
    if not store.has_slide(plan.info.name):
        return True
    slide = undamaged_slide(store, plan.info.name)
    if slide is None:
        return False  # damaged: its spots were taken before
    return not any(one.complete for name in slide.undamaged_encoders() for one in slide.undamaged(name))


def _tissue(slide: Slide, plan: SlidePlan, least: float) -> Tissue | None:
    """Where the slide has tissue; None where it cannot be told from glass, or seen, and `least` is 0."""
    try:
        return find_tissue(slide, plan.source.mpp)
    except (TissueError, OverviewError) as error:
        if least:
            raise
        if isinstance(error, TissueError) and plan.made_by is None:
            _LOG.warning(
                "%s: no tissue can be told from glass on its image, as on a black or empty one; its spots are"
                " embedded as they are.",
                printable(plan.info.name),
            )
        else:
            _LOG.info("slide %s: %s", printable(plan.info.name), error)
        return None


def _shares(tissue: Tissue | None, boxes: NDArray[np.float64]) -> NDArray[np.float32]:
    """(n,) share of tissue of every window; NaN where that is not known."""
    return np.full(len(boxes), np.nan, np.float32) if tissue is None else share_of_tissue(tissue, boxes)
