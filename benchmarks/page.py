"""Measure a page of results: its size, the time and memory to write it, and the time to its first picture.

The prediction is made: smooth programmes of expression over a section, counts drawn from them, a thumbnail of
noise and gradients. `make browser` installs the Chromium that opens the page.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import tifffile
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from mmap_st.report import draw_page

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1700")
READY = "return (Bokeh.documents[0]?.get_model_by_name('words')?.text ?? '') !== ''"


def write_prediction(
    path: Path, spots: int, genes: int, seed: int = 0, *, pitch_px: float = 200.0, image: Path | None = None
) -> None:
    """Write a made prediction of this size, on a grid of 100 um."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(spots)))
    place = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)[:spots]
    waves = rng.normal(size=(2, 8)) / side * 4
    programmes = np.sin(place @ waves * np.pi + rng.uniform(0, 6, 8)) @ rng.normal(size=(8, genes)) * 0.4
    rate = programmes + rng.normal(size=genes) - 1
    ids = [f"r{y:04d}c{x:04d}" for x, y in place]
    predicted = (rate + rng.normal(size=rate.shape) * 0.05).astype(np.float32)
    measured = np.log1p(rng.poisson(np.exp(rate)) * rng.uniform(2, 6, (spots, 1)))
    table = anndata.AnnData(
        predicted,
        obs=pd.DataFrame({"distance": rng.gamma(4, 0.3, spots)}, index=ids),
        var=pd.DataFrame({"ceiling": rng.uniform(0.2, 0.9, genes)}, index=[f"GENE{i}" for i in range(genes)]),
        obsm={"spatial": (place + 0.5) * pitch_px},
        layers={
            "measured": measured.astype(np.float32),
            "spread": np.sqrt(0.1 + 0.1 * np.exp(predicted / 3)).astype(np.float32),
        },
    )
    table.var["interval_90"] = 1.7
    pixels = np.clip(rng.normal(200, 25, (1600, 1600, 3)), 0, 255).astype(np.uint8)
    scale = 1600 / (side * pitch_px)
    table.uns["spatial"] = {
        "made": {
            "images": {"hires": pixels},
            "scalefactors": {"tissue_hires_scalef": scale, "spot_diameter_fullres": 0.55 * pitch_px},
        }
    }
    table.obsm["attention"] = attention_of(place, side, rng)
    if image is None:
        image = path.with_suffix(".tif")
        write_image(image, int(side * pitch_px), rng)
    table.uns["mmap"] = {
        "slide": "made",
        "units": "log1p",
        "encoder": "made",
        "source_mpp": 100 / pitch_px,
        "spot_diameter_px": 0.55 * pitch_px,
        "image": str(image.resolve()),
    }
    table.write_h5ad(path, compression="gzip")  # as `mmap predict` does


def attention_of(place: np.ndarray, side: int, rng: np.random.Generator, prototypes: int = 80) -> np.ndarray:
    """(n, K) attention over half of the prototypes, those that lie nearest to the spot."""
    distance = np.linalg.norm(place[:, None] - rng.uniform(0, side, (prototypes, 2)), axis=2)
    weights = np.exp(-distance / side * 3 + rng.normal(0, 0.1, distance.shape))
    weights[distance > np.median(distance, axis=1, keepdims=True)] = 0
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float16)


def write_image(path: Path, side_px: int, rng: np.random.Generator) -> None:
    """Write a tiled image with structures of a few micrometres, one tile again and again."""
    noise = rng.normal(size=(256, 256, 3))
    for axis in (0, 1):
        noise = sum(np.roll(noise, shift, axis) for shift in range(-4, 5)) / 9
    tile = np.clip(180 + 500 * noise, 0, 255).astype(np.uint8)
    tiles = -(-side_px // 256)
    tifffile.imwrite(
        path, (tile for _ in range(tiles**2)), shape=(tiles * 256, tiles * 256, 3), dtype=np.uint8,
        tile=(256, 256), photometric="rgb", compression="zlib",
    )  # fmt: skip


def chromium() -> webdriver.Chrome:
    """A browser without a window."""
    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    for flag in FLAGS:
        options.add_argument(flag)
    return webdriver.Chrome(service=Service(str(shutil.which("chromedriver"))), options=options)


def first_picture_s(page: Path, rounds: int = 3) -> float:
    """Seconds from opening the page to its first maps, the median of several times."""
    driver = chromium()
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        driver.get(page.as_uri())
        WebDriverWait(driver, 60, poll_frequency=0.02).until(lambda d: d.execute_script(READY))
        found.append(time.perf_counter() - started)
    driver.quit()
    return float(np.median(found))


def main() -> None:
    """Write a prediction and its page, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--spots", type=int, default=5000)
    parser.add_argument("--genes", type=int, default=1000)
    arguments = parser.parse_args()
    folder = arguments.out / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    write_prediction(folder / "made.h5ad", arguments.spots, arguments.genes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    (page,) = draw_page(folder, arguments.out / "report.html").written
    written_s = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {
        "size_mb": round(page.stat().st_size / 1e6, 2),
        "written_s": round(written_s, 2),
        "peak_gib": round(peak / 2**20, 2),
        "peak_before_gib": round(before / 2**20, 2),
        "first_picture_s": round(first_picture_s(page), 2),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
