"""Rows a second that the writing thread saves, alone and beside threads that read windows.

    python benchmarks/writing.py --width 1024 --readers 0,2,8

Threads that read share Python's lock with the one that writes, so that what it does in many small steps takes
far longer beside them. The embeddings are random numbers; slide, read plan, journals and store are real.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
from gpu_extract import MPPS, SIDE, SLIDE, prepare_slide, spec_of
from pyramid import MPP, spots_on_grid

from mmap_st.data.cohort import CohortSlide
from mmap_st.extract.encoders import build_encoder
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.engine.planning.plan import PlanRequest, plan_slide, run_recipe
from mmap_st.extract.engine.session import SlideSession, open_session
from mmap_st.extract.store.reader import FeatureStore


def opened(folder: Path, spots: int, width: int) -> SlideSession:
    """A slide of `spots` whose embeddings have `width`; what made them is never asked."""
    encoder = build_encoder(
        spec_of("uni", tiny=True), random_weights=True, device="cpu", precision="fp32", batch_size=256
    )
    encoder = replace(encoder, width=width)
    xy = spots_on_grid(spots, SIDE, SIDE)
    lines = ["id,pixel_x,pixel_y", *(f"s{i},{x},{y}" for i, (x, y) in enumerate(xy.tolist()))]
    (folder / "spots.csv").write_text("\n".join(lines))
    row = CohortSlide(
        "slide",
        image=folder.parent / SLIDE,
        spots=folder / "spots.csv",
        reader="table",
        mpp=MPP,
        mpp_from="cohort",
    )
    store = FeatureStore.create(folder / "features.zarr")
    plan = plan_slide(row, store, PlanRequest(run_recipe(encoder, 0.0), MPPS))
    return open_session(plan, store, encoder, ExtractOptions(256, 16))


@contextmanager
def reading(session: SlideSession, threads: int) -> Iterator[list[int]]:
    """Threads that read the slide's windows again and again; how many each has read."""
    done, read = threading.Event(), [0] * threads

    def work(number: int) -> None:
        steps = len(session.reading)
        for step in count(number, threads):
            if done.is_set():
                return
            read[number] += len(session.reader.read(step % steps))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield read
    finally:
        done.set()
        for worker in workers:
            worker.join()


def measure(folder: Path, spots: int, width: int, readers: int) -> str:
    """Save all batches of a slide."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        session = opened(Path(scratch), spots, width)
        plan, rng = session.reading, np.random.default_rng(0)
        with reading(session, readers) as read:
            began = time.perf_counter()
            for batch in session.batches:
                part = slice(plan.step_windows[batch.start], plan.step_windows[batch.stop])
                rows = plan.row_of[part]
                embedding = rng.standard_normal((len(rows), width), dtype=np.float32)
                session.save(plan.source_of[part], rows, np.ones(len(rows), bool), embedding)
            seconds = time.perf_counter() - began
        session.close()
    return (
        f"{readers} reading threads: {len(plan.row_of) / seconds:,.0f} rows/s written,"
        f" {sum(read) / seconds:,.0f} windows/s read"
    )


def main() -> None:
    """Measure each number of reading threads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=1024, help="length of an embedding")
    parser.add_argument("--spots", type=int, default=3000)
    parser.add_argument("--readers", default="0,2,8", help="numbers of reading threads")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare_slide(Path(folder))
        for readers in map(int, arguments.readers.split(",")):
            print(measure(Path(folder), arguments.spots, arguments.width, readers), flush=True)


if __name__ == "__main__":
    main()
