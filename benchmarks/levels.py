"""How much embeddings change when windows are read from a lower level of a pyramid rather than from level 0.

    python benchmarks/levels.py SLIDE --weights FILE

For every level the windows are chosen so that the level is 1, 2, 4 or 8 times as fine as they are; shown are
the smallest and the median cosine between the embeddings of both readings. Both encoders see 224 px.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from contestants import spec_of
from numpy.typing import NDArray

from extract import ENCODERS, IMAGENET
from mmap_st.extract.encoders import build_encoder, encoder_spec
from mmap_st.extract.slides.formats.pixels import levels_of
from mmap_st.extract.slides.slide import Slide, open_slide
from mmap_st.extract.windows.reader import read_window

PX = 224


class OneLevel:
    """A slide of which only one level is there."""

    def __init__(self, slide: Slide, level: int) -> None:
        self._slide, self._level = slide, level
        self.levels = levels_of([slide.levels[level].size])

    def read(self, box: tuple[int, int, int, int], level: int = 0):  # type: ignore[no-untyped-def]
        """Read from that level."""
        return self._slide.read(box, self._level)


def windows(slide: Slide, level: int, xy: NDArray[np.float64], shrink: float) -> NDArray[np.uint8]:
    """(n, PX, PX, 3) windows around `xy` in level-0 pixels, `shrink` of which make one of theirs."""
    down = np.array(slide.levels[level].downsample)
    alone = OneLevel(slide, level)
    found = []
    for centre in xy:
        low, high = (centre - PX * shrink / 2) / down, (centre + PX * shrink / 2) / down
        found.append(read_window(alone, (*low, *high), PX))  # type: ignore[arg-type]
    return np.stack(found)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("--weights", type=Path, help="of the ViT-S, in safetensors")
    parser.add_argument("--windows", type=int, default=40)
    arguments = parser.parse_args()
    arch, arch_kwargs = ENCODERS["vits14"]
    job = argparse.Namespace(
        arch=arch, arch_kwargs=arch_kwargs, input_px=PX, mean=IMAGENET[0], std=IMAGENET[1]
    )
    encoders = {
        "efficientnet-lite0": build_encoder(encoder_spec("efficientnet-lite0"), device="cpu"),
        "ViT-S/14": build_encoder(
            spec_of(job), weights=arguments.weights, random_weights=arguments.weights is None, device="cpu"
        ),
    }
    slide = open_slide(arguments.slide)
    size = np.array(slide.size)
    xy = np.random.default_rng(0).uniform(size * 0.3, size * 0.7, (arguments.windows, 2))
    names = [f"{name}: least | median" for name in encoders]
    print(f"| downsample | times as fine | {' | '.join(names)} |\n|{' --- |' * (2 + 2 * len(names))}")
    for level in range(1, len(slide.levels)):
        down = max(slide.levels[level].downsample)
        for finer in (1, 2, 4, 8):
            if PX * down * finer > 1.5 * size.min():
                continue
            cells = []
            for encoder in encoders.values():
                ours, plain = (
                    encoder.embed(windows(slide, number, xy, down * finer)) for number in (level, 0)
                )
                norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(plain, axis=1)
                cosine = (ours * plain).sum(axis=1) / norms
                cells.append(f"{cosine.min():.5f} | {np.median(cosine):.5f}")
            print(f"| {down:.4g} | {finer} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
