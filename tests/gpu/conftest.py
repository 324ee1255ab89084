"""A slide for tests of the whole way: a pyramid of JPEG tiles, written in a second."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmap_st


@pytest.fixture
def pyramid(monkeypatch) -> Callable[..., Path]:
    """Write a slide of noise at 0.25 um/px, and ``spots.csv`` beside it."""
    monkeypatch.setattr(sys, "path", [str(Path(mmap_st.__file__).parent / "benchmarks"), *sys.path])
    from pyramid import PICTURE, spots_on_grid, write_pyramid

    def write(path: Path, spots: int) -> Path:
        noise = np.random.default_rng(0).integers(0, 256, (PICTURE // 32, PICTURE // 32, 3), np.uint8)
        picture = Image.fromarray(noise).resize((PICTURE, PICTURE), Image.Resampling.BICUBIC)
        write_pyramid(path, PICTURE, PICTURE, repeat_bytes=True, picture=picture)
        xy = spots_on_grid(spots, PICTURE, PICTURE)
        lines = ["id,pixel_x,pixel_y", *(f"s{i},{x},{y}" for i, (x, y) in enumerate(xy.tolist()))]
        (path.parent / "spots.csv").write_text("\n".join(lines))
        return path

    return write
