"""Measure the viewer: time to the first picture and to another gene's, its memory, and frames while panning.

The prediction is that of ``benchmarks/page.py`` on a made pyramid. `make browser` installs the Chromium that
opens it, here without a graphics card: frames are drawn by the processor.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from page import chromium, write_prediction
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

PITCH_PX = 50.0
READY = (
    "const {state, model} = window.viewer ?? {}; const tiles = model?.('tissue')?.tile_source.tiles;"
    " return !!tiles && [...tiles.values()].some((t) => t.loaded)"
    " && model('spots').data.value.some(Number.isFinite)"
)
GENE = """
const [gene, done] = arguments, began = performance.now(), field = document.getElementById("gene")
field.value = gene
field.dispatchEvent(new Event("change"))
const look = () => document.getElementById("words").textContent.startsWith(gene + ",")
  ? requestAnimationFrame(() => done(performance.now() - began)) : setTimeout(look, 2)
look()
"""
PAN = """
const done = arguments[0], {model} = window.viewer, times = [], across = model("across")
const step = (across.end - across.start) / 200
let last = performance.now()
const frame = () => {
  const now = performance.now()
  times.push(now - last)
  last = now
  if (times.length > 60) return done(times.slice(5).sort((a, b) => a - b)[28])
  across.setv({start: across.start + step, end: across.end + step})
  requestAnimationFrame(frame)
}
requestAnimationFrame(frame)
"""


def write_pyramid(path: Path, side: int) -> None:
    """Write a tiled TIFF of three levels: waves and noise, in JPEG."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 12, (256, 256, 3))

    def tiles(step: int) -> Iterator[np.ndarray]:
        across = -(-side // (256 * step))
        y, x = np.mgrid[:256, :256]
        for row in range(across):
            for column in range(across):
                waves = np.sin((x + 256 * column) * step / 300) * np.cos((y + 256 * row) * step / 400)
                tile = np.array([205, 165, 205]) + 35 * waves[..., None] + noise
                yield np.clip(tile, 0, 255).astype(np.uint8)

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for step in (1, 4, 16):
            shape = (side // step, side // step, 3)
            file.write(
                tiles(step), shape=shape, dtype=np.uint8, tile=(256, 256), photometric="rgb",
                compression="jpeg", subfiletype=int(step > 1),
            )  # fmt: skip


def write_slide(folder: Path, spots: int, genes: int) -> None:
    """Write the prediction, and the image that it names."""
    image = folder / "made.tif"
    write_prediction(folder / "made.h5ad", spots, genes, pitch_px=PITCH_PX, image=image.resolve())
    write_pyramid(image, int(np.ceil(np.sqrt(spots)) * PITCH_PX))


def memory_mb(pid: int, key: str = "VmRSS") -> float:
    """Of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def measure(driver: webdriver.Chrome, url: str, pid: int) -> dict[str, float]:
    """The figures of a viewer that is served."""
    began = memory_mb(pid)
    opening = []
    for _ in range(3):
        started = time.perf_counter()
        driver.get(url)
        WebDriverWait(driver, 60, poll_frequency=0.02).until(lambda d: d.execute_script(READY))
        opening.append(time.perf_counter() - started)
    genes = [float(driver.execute_async_script(GENE, f"GENE{i}")) for i in range(2, 12)]
    frames = float(driver.execute_async_script(PAN))
    for i in range(20, 120):
        driver.execute_async_script(GENE, f"GENE{i}")
    return {
        "first_picture_s": round(opening[0], 2),
        "opened_again_s": round(float(np.median(opening[1:])), 2),
        "another_gene_ms": round(float(np.median(genes))),
        "frame_ms": round(frames, 1),
        "memory_at_first_mb": round(began),
        "memory_after_110_genes_mb": round(memory_mb(pid)),
        "memory_peak_mb": round(memory_mb(pid, "VmHWM")),
    }


def main() -> None:
    """Write a slide, serve it, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the prediction and its image")
    parser.add_argument("--spots", type=int, default=50_000)
    parser.add_argument("--genes", type=int, default=1_000)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "made.tif").exists():
        write_slide(options.out, options.spots, options.genes)
    words = [sys.executable, "-m", "mmap_st", "view", str(options.out), "--no-browser"]
    started = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = next(line.strip() for line in server.stdout if line.startswith("http"))
        served = round(time.perf_counter() - started, 2)
        driver = chromium()
        driver.set_script_timeout(60)
        try:
            figures = measure(driver, url, server.pid)
        finally:
            driver.quit()
            server.terminate()
    print(json.dumps({"spots": options.spots, "genes": options.genes, "served_s": served, **figures}))


if __name__ == "__main__":
    main()
