"""Files of a slide in a store, and how fast its embeddings are read from the folder and from one file.

    python benchmarks/store_files.py --spots 1000,5000,50000 --width 1280

The embeddings are random numbers at three magnifications; the store, its prototypes and its file are real.
Both are read from memory (the system's page cache), by one thread and by several.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mmap_st.data import Spots
from mmap_st.extract.store import FeatureStore, MagnificationWriter, SlideInfo, pack_into, write_slide
from mmap_st.prototypes import CandidateSettings
from mmap_st.prototypes.stored import build_all

MPPS = (0.5, 1.0, 2.0)
_ROUNDS = 5


def made(path: Path, n: int, width: int, chunk: int) -> FeatureStore:
    """A store of one slide of `n` spots."""
    rng = np.random.default_rng(0)
    store = FeatureStore.create(path)
    info = SlideInfo("slide", "P", "slide.svs", (100_000, 100_000), 0.25, "image")
    write_slide(store, info, Spots(tuple(map(str, range(n))), rng.uniform(0, 1e5, (n, 2))))
    for mpp in MPPS:
        recipe = {"encoder": {"name": "enc"}, "weights_sha256": "w", "precision": "fp32", "mpp": mpp}
        writer = MagnificationWriter(store, "slide", "enc", mpp, recipe, (n, width), chunk=chunk)
        for index in writer.pending():
            ones = np.ones(len(writer.rows(index)), np.float32)
            values = rng.normal(size=(len(ones), width)).astype(np.float32)
            writer.write_chunk(index, values, ones > 0, ones, ones)
        writer.finish({})
    build_all(store, "enc", MPPS, CandidateSettings())
    return FeatureStore(path)


def seconds(store: Path, threads: int) -> float:
    """The least time of some rounds that all embeddings take, in a store that is opened anew."""
    took = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            slides = [FeatureStore(store)["slide"] for _ in range(threads)]
            list(pool.map(lambda slide: [slide.embedding("enc", mpp=mpp) for mpp in MPPS], slides))
        took.append(time.perf_counter() - began)
    return min(took)


def main() -> None:
    """Print one line for each number of spots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--spots", default="1000,5000,50000")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    for n in map(int, options.spots.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            path, packed = Path(scratch) / "f.zarr", Path(scratch) / "f.zarr.zip"
            store = made(path, n, options.width, options.chunk)
            files = sum(len(names) for _, _, names in os.walk(path))
            folders = sum(len(names) for _, names, _ in os.walk(path))
            began = time.perf_counter()
            size = pack_into(store, packed).bytes
            took = time.perf_counter() - began
            megabytes = 2 * n * options.width * len(MPPS) / 1e6
            speeds = [
                f"{kind} {megabytes * threads / seconds(place, threads):.0f} MB/s by {threads}"
                for threads in (1, options.threads)
                for kind, place in (("folder", path), ("file", packed))
            ]
            print(
                f"{n:,} spots: {files} files in {folders} folders",
                f"{size / 1e6:.0f} MB packed in {took:.1f} s",
                *speeds,
                sep="; ",
                flush=True,
            )


if __name__ == "__main__":
    main()
