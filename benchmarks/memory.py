"""Embed 50,000 spots of a slide of 100,000 x 80,000 px, and print the peak memory above that of the model.

    python benchmarks/memory.py --magnifications 40,20,10

The slide repeats its compressed tiles, so that it takes 5 MB on disk; it is decoded like any other. One that
is in the folder already is taken.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np
from pyramid import MPP, spots_on_grid, write_pyramid

from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.extract.encoders import Encoder, build_encoder, encoder_spec
from mmap_st.extract.engine import encoder_request
from mmap_st.extract.engine.device import keep_freed_memory
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.windows.geometry import parse_magnifications

WIDTH, HEIGHT = 100_000, 80_000


def peak_gb() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def main() -> None:
    """Embed, and print one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/benchmark-memory"))
    parser.add_argument("--spots", type=int, default=50_000)
    parser.add_argument("--magnifications", default="40,20,10")
    parser.add_argument("--encoder", default="timm:test_efficientnet")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    slide = out / "large.tif"
    if not slide.is_file():
        # Painting takes memory too: not that of this process.
        painting = multiprocessing.get_context("spawn").Process(
            target=write_pyramid, args=(slide, WIDTH, HEIGHT), kwargs={"repeat_bytes": True}
        )
        painting.start()
        painting.join()
    xy = spots_on_grid(arguments.spots, WIDTH, HEIGHT)
    lines = ["id,pixel_x,pixel_y", *(f"s{i},{x},{y}" for i, (x, y) in enumerate(xy.tolist()))]
    (out / "spots.csv").write_text("\n".join(lines))
    row = CohortSlide(
        "large", image=slide, spots=out / "spots.csv", reader="table", mpp=MPP, mpp_from="cohort"
    )
    request = EncoderRequest(encoder_spec(arguments.encoder), random_weights=True, device="cpu")
    mpps = parse_magnifications(arguments.magnifications, None)
    assert mpps is not None
    keep_freed_memory()
    built: list[float] = []

    def build(*args: object, **kwargs: object) -> Encoder:
        encoder: Encoder = build_encoder(*args, **kwargs)  # type: ignore[arg-type]
        encoder.embed(np.zeros((32, encoder.spec.input_px, encoder.spec.input_px, 3), np.uint8))
        built.append(peak_gb())
        return encoder

    encoder_request.build_encoder = build
    began = time.perf_counter()
    report = extract_cohort(Cohort((row,), "memory"), out / "features.zarr", request, mpps, ExtractOptions())
    if report.failed or not report.done:
        raise SystemExit(f"not embedded: {report.failed or 'the store had it already'}")
    figures = {
        "windows": report.windows,
        "seconds": round(time.perf_counter() - began, 1),
        "with_model_gb": round(built[0], 3),
        "peak_gb": round(peak_gb(), 3),
        "above_model_gb": round(peak_gb() - built[0], 3),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
