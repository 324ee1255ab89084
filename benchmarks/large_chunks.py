"""Time to read all windows of a slide that is stored in large chunks or strips.

``python benchmarks/large_chunks.py FOLDER`` writes one made slide in several forms and reads its windows
twice: with each tile decoded by itself, as it was before chunks were decoded as a whole, and as it is now.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

from mmap_st.extract.slides import open_slide
from mmap_st.extract.slides.formats import pixels
from mmap_st.extract.windows import WindowReader, plan_reading

SIDE, MPP, INPUT_PX, MPPS = 8192, 0.25, 224, (0.25, 0.5)
CACHE_BYTES = 256 << 20


def main() -> None:
    """Write the slides, read them, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    picture = made_tissue()
    print("| slide | chunks | tile by tile, s | decodes | now, s | decodes |\n" + "| --- " * 6 + "|")
    for name, chunk in (
        ("OME-Zarr, the chunks that SpatialData writes by itself", 6688),
        ("OME-Zarr of 4,096 px", 4096),
        ("OME-Zarr of 1,024 px", 1024),
        ("OME-TIFF in strips of 16 rows", None),
    ):
        path = options.folder / ("S.ome.tif" if chunk is None else f"S{chunk}.ome.zarr")
        if chunk is None:
            tifffile.imwrite(
                path,
                picture,
                photometric="rgb",
                rowsperstrip=16,
                compression="zlib",
                metadata={"axes": "YXS"},
            )
        else:
            write_ome_zarr(path, picture, chunk)
        figures = [read_all(path, options.threads, whole=whole) for whole in (False, True)]
        chunks = -(-SIDE // 16) if chunk is None else (-(-SIDE // chunk)) ** 2
        cells = " | ".join(f"{seconds:.1f} | {decodes}" for seconds, decodes in figures)
        print(f"| {name} | {chunks} | {cells} |", flush=True)


def made_tissue() -> NDArray[np.uint8]:
    """(h, w, 3) smooth noise, which compresses about as tissue does."""
    noise = np.random.default_rng(0).integers(0, 255, (SIDE // 4, SIDE // 4, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def write_ome_zarr(path: Path, picture: NDArray[np.uint8], chunk: int) -> None:
    """One level, channels first, as SpatialData writes it."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    shape = (3, SIDE, SIDE)
    array = group.create_array(
        "0", shape=shape, dtype="uint8", chunks=(3, min(chunk, SIDE), min(chunk, SIDE))
    )
    array[:] = np.moveaxis(picture, 2, 0)
    axes = [{"name": "c", "type": "channel"}, *({"name": name, "type": "space"} for name in "yx")]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]


def read_all(path: Path, threads: int, *, whole: bool) -> tuple[float, int]:
    """Seconds to plan and read all windows, and how often something was decoded."""
    tiling = pixels.tiling
    if not whole:
        pixels.tiling = lambda chunk, size: (
            (chunk if max(chunk) <= pixels._LARGEST_TILE_PX else (pixels.TILE_PX, pixels.TILE_PX)),
            (1, 1),
        )
    try:
        slide = open_slide(path)
    finally:
        pixels.tiling = tiling
    places = np.arange(500.0, SIDE, 1400.0)
    xy = np.stack(np.meshgrid(places, places), -1).reshape(-1, 2)
    began = time.perf_counter()
    plan = plan_reading(
        slide.levels, xy, MPP, INPUT_PX, {mpp: np.arange(len(xy)) for mpp in MPPS}, 32, CACHE_BYTES
    )
    reader = WindowReader(slide, plan, CACHE_BYTES)
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda step: len(reader.read(step)), range(len(plan))):
            pass
    seconds = time.perf_counter() - began
    slide.close()
    return seconds, reader.decoded


if __name__ == "__main__":
    main()
