"""Count the transcripts of a made Xenium section in squares: seconds and peak memory.

`python benchmarks/xenium.py --out out/xenium` writes a bundle of 40 million transcripts of 5,000 genes at
random places of 10 x 20 mm: more pairs of square and gene than tissue has, where neighbours resemble each
other. Then it reads spots and counts, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from mmap_st.data.readers import open_cohort, read_counts, read_spots

CONTROLS = 40
SIZE_UM = (10_000, 20_000)


def write_bundle(root: Path, transcripts: int, genes: int, seed: int = 0) -> None:
    """A bundle with its matrix of alignment, and no image: none is read."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True)
    share = np.r_[rng.lognormal(0, 1.5, genes), np.full(CONTROLS, 0.01)]
    names = [*(f"GENE{i}" for i in range(genes)), *(f"NegControlProbe_{i:05d}" for i in range(CONTROLS))]
    feature = rng.choice(genes + CONTROLS, transcripts, p=share / share.sum()).astype(np.uint32)
    columns = {
        f"{axis}_location": rng.random(transcripts, np.float32) * side
        for axis, side in zip("xy", SIZE_UM, strict=True)
    }
    quality = rng.random(transcripts, np.float32) * 45
    named = pl.Series("feature_name", names).gather(feature)
    table = pl.DataFrame({**columns, "qv": quality, "feature_name": named, "is_gene": feature < genes})
    table.write_parquet(root / "transcripts.parquet", row_group_size=1_000_000)
    (root / "experiment.xenium").write_text(json.dumps({"pixel_size": 0.2125}))
    (root / "made_he_imagealignment.csv").write_text("2,0,0\n0,2,0\n0,0,1\n")


def measure(root: Path, bin_um: float, what: str) -> None:
    """Print one row of the table."""
    (slide,) = open_cohort(f"xenium:{root}", bin_um=bin_um).slides
    start = time.perf_counter()
    if what == "spots":
        found = f"{len(read_spots(slide)):,} spots"
    else:
        counts = read_counts(slide)
        found = f"{counts.matrix.sum():,.0f} transcripts, {counts.matrix.nnz:,} values"
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"| {what}, {bin_um:g} um | {found} | {seconds:.1f} | {peak:.2f} |", flush=True)


def main() -> None:
    """Write the bundle if it is not there, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--transcripts", type=int, default=40_000_000)
    parser.add_argument("--genes", type=int, default=5_000)
    given = parser.parse_args()
    if not given.out.exists():
        # A process starts with the peak of the one that made it.
        _alone(write_bundle, given.out, given.transcripts, given.genes)
    print("| what | result | s | peak GB |\n| --- | --- | --- | --- |", flush=True)
    for bin_um in (100.0, 20.0):
        for what in ("spots", "counts"):
            _alone(measure, given.out, bin_um, what)


def _alone(task: Callable[..., None], *arguments: object) -> None:
    process = multiprocessing.get_context("spawn").Process(target=task, args=arguments)
    process.start()
    process.join()


if __name__ == "__main__":
    main()
