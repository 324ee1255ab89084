"""Read, check and grid a simulated Visium HD table: seconds and peak memory.

`python benchmarks/visium_hd.py --out out/visium-hd` writes the bins of one sample (708 x 708 bins of 8 um,
so 501,264; 18,000 genes; on average 60 transcripts a bin) with its image, then reads spots and counts, checks
the cohort, and lays a grid of about as many spots, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import polars as pl
from PIL import Image, ImageDraw

from mmap_st.data.readers import open_cohort, read_counts, read_spots
from mmap_st.extract.slides.grid import grid_spots
from mmap_st.extract.slides.slide import open_slide
from mmap_st.extract.slides.tissue import find_tissue
from mmap_st.report.cohort_check import check_slide

MPP = 1.0
BIN_UM = 8.0
MARGIN_PX = 300


def write_sample(root: Path, side: int, genes: int, transcripts: float, seed: int = 0) -> None:
    """One sample in Space Ranger's layout, its matrix in slabs so that little memory is needed."""
    rng = np.random.default_rng(seed)
    folder = root / "outs" / "binned_outputs" / "square_008um"
    (folder / "spatial").mkdir(parents=True, exist_ok=True)
    row, column = np.divmod(np.arange(side * side), side)
    ids = [f"s_008um_{r:05d}_{c:05d}-1" for r, c in zip(row, column, strict=True)]
    pl.DataFrame(
        {
            "barcode": ids,
            "in_tissue": np.ones(len(ids), np.int64),
            "array_row": row,
            "array_col": column,
            "pxl_row_in_fullres": row * BIN_UM / MPP + MARGIN_PX,
            "pxl_col_in_fullres": column * BIN_UM / MPP + MARGIN_PX,
        }
    ).write_parquet(folder / "spatial" / "tissue_positions.parquet")
    factors = {"bin_size_um": BIN_UM, "microns_per_pixel": MPP, "tissue_hires_scalef": 0.2}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    _write_matrix(folder / "filtered_feature_bc_matrix.h5", ids, genes, transcripts, rng)
    size = int(side * BIN_UM / MPP) + 2 * MARGIN_PX
    image = Image.new("RGB", (size, size), (243, 242, 244))
    draw = ImageDraw.Draw(image)
    inner = size - MARGIN_PX + 10
    draw.rectangle((MARGIN_PX - 10, MARGIN_PX - 10, inner, inner), fill=(216, 156, 198))
    for x, y in rng.uniform(MARGIN_PX, inner, (100_000, 2)).tolist():
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(90, 60, 140))
    image.save(root / "image.jpg", quality=90)


def _write_matrix(
    path: Path, ids: list[str], genes: int, transcripts: float, rng: np.random.Generator
) -> None:
    per_bin = rng.poisson(transcripts, len(ids))
    indptr = np.concatenate([[0], np.cumsum(per_bin)])
    weight = rng.lognormal(0, 1.5, genes)
    weight /= weight.sum()
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(ids, "S")
        group["shape"] = np.array([genes, len(ids)], np.int32)
        group["indptr"] = indptr
        total = int(indptr[-1])
        data = group.create_dataset("data", (total,), np.int32, chunks=(1 << 16,), compression="gzip")
        indices = group.create_dataset("indices", (total,), np.int64, chunks=(1 << 16,), compression="gzip")
        step = 2_000_000
        for start in range(0, total, step):
            stop = min(start + step, total)
            # Genes of a bin need not be sorted, nor distinct: equal ones add up.
            indices[start:stop] = rng.choice(genes, stop - start, p=weight)
            data[start:stop] = 1
        features = group.create_group("features")
        names = [f"GENE{i}" for i in range(genes)]
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(genes)], "S")
        features["name"] = np.array(names, "S")
        features["feature_type"] = np.array(["Gene Expression"] * genes, "S")
        features["genome"] = np.array(["GRCh38"] * genes, "S")


def read(root: Path) -> str:
    """Spots and counts."""
    row = open_cohort(f"visium-hd:{root / 'outs'}", image=root / "image.jpg").slides[0]
    spots, counts = read_spots(row), read_counts(row)
    return f"{len(spots):,} bins, {len(counts.genes):,} genes, {counts.matrix.nnz:,} values"


def check(root: Path) -> str:
    """What `mmap cohort check` does."""
    row = open_cohort(f"visium-hd:{root / 'outs'}", image=root / "image.jpg").slides[0]
    found = check_slide(row)
    assert not found.problems, found.problems
    return f"{found.mpp.mpp if found.mpp else 0:g} um/px, {found.on_tissue or 0:.0%} on tissue"


def grid(root: Path) -> str:
    """What `mmap extract --spots grid:8` lays."""
    slide = open_slide(root / "image.jpg")
    spots = grid_spots(find_tissue(slide, MPP), slide.size, MPP, BIN_UM, "square")
    return f"{len(spots):,} spots"


def _measured(
    task: Callable[[Path], str], root: Path, queue: multiprocessing.Queue[tuple[str, float, float]]
) -> None:
    started = time.perf_counter()
    said = task(root)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    queue.put((said, time.perf_counter() - started, peak))


def main() -> None:
    """Write the sample where it is not there yet, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=708)
    parser.add_argument("--genes", type=int, default=18_000)
    parser.add_argument("--transcripts", type=float, default=60.0)
    arguments = parser.parse_args()
    if not (arguments.out / "image.jpg").exists():
        write_sample(arguments.out, arguments.side, arguments.genes, arguments.transcripts)
    context = multiprocessing.get_context("spawn")
    print("| what | result | s | peak GB |\n| --- | --- | --- | --- |")
    for task in (read, check, grid):
        queue = context.Queue()
        process = context.Process(target=_measured, args=(task, arguments.out, queue))
        process.start()
        said, seconds, peak = queue.get(timeout=600)
        process.join()
        print(f"| {task.__name__} | {said} | {seconds:.1f} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
