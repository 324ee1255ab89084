"""Fit and apply a head on made slides of any size: seconds and peak memory of each step.

`python benchmarks/head_scale.py --out out/head-scale` writes a cohort of 1,000,000 spots, one slide of
300,000 and 14 of 50,000 (float16 embeddings of width 1,024 at three magnifications, 6 GB; counts of 2,000
genes, 60 transcripts a spot), then does what `mmap fit-head --test` and `mmap predict` do, each in a process
of its own. `--no-baselines` leaves out ridge and the training mean, which `fit-head` scores beside a head.
`--fit-slides N` fits on the first slides only and predicts the others, with their counts. One large slide
that was not trained on is `--sizes "10000*4,1000000" --fit-slides 4`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from mmap_st.data.cohort import Cohort, CohortSlide
from mmap_st.data.spots import Spots
from mmap_st.extract.store import FeatureStore, SlideInfo
from mmap_st.extract.store.recipe import imported_recipe
from mmap_st.extract.store.writing.writer import MagnificationWriter, write_slide
from mmap_st.head.interface import parse_settings
from mmap_st.head.registry import head_method
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.prediction import predict_slides
from mmap_st.head.runs.request import FitRequest

ENCODER = "made"
MPPS = (0.5, 1.0, 2.0)
PITCH_PX = 100.0
KINDS = 12
CHUNK = 1024


def slide_sizes(text: str) -> list[int]:
    """Spots of each slide: ``300000,50000*14``."""
    sizes = []
    for part in text.split(","):
        spots, _, times = part.partition("*")
        sizes += [int(spots)] * int(times or 1)
    return sizes


def write_cohort(out: Path, sizes: list[int], width: int, genes: int, transcripts: float) -> None:
    """Slides on which smooth fields in space make both the embeddings and the expression."""
    rng = np.random.default_rng(0)
    loading = {mpp: rng.normal(size=(KINDS, width)).astype(np.float32) for mpp in MPPS}
    effect = rng.normal(0, 0.5, (KINDS, genes)) * (rng.random(genes) < 0.3)
    level = np.log(rng.lognormal(0, 1.5, genes))
    store = FeatureStore.create(out / "features.zarr")
    for number, n in enumerate(sizes):
        name, side = f"S{number:03d}", int(np.ceil(np.sqrt(n)))
        y, x = np.divmod(np.arange(n), side)
        xy = np.stack([x, y], 1) * PITCH_PX
        wave = rng.normal(0, 0.15, (KINDS, 2))
        field = np.sin(xy / PITCH_PX @ wave.T + rng.uniform(0, 6, KINDS)).astype(np.float32)
        spots = Spots(tuple(f"{i}x{j}" for i, j in zip(x.tolist(), y.tolist(), strict=True)), xy)
        write_slide(store, SlideInfo(name, f"P{number:03d}", None, None, None, None), spots)
        for mpp in MPPS:
            write_embeddings(store, name, spots, mpp, field, loading[mpp], rng)
        write_counts(out / f"{name}.h5ad", spots, field, effect, level, transcripts, rng)


def write_embeddings(
    store: FeatureStore,
    name: str,
    spots: Spots,
    mpp: float,
    field: np.ndarray,
    loading: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """One magnification, chunk by chunk: the fields of a spot, and noise."""
    rows = np.arange(len(spots))
    recipe = imported_recipe(ENCODER, mpp, "float16", spots, "0" * 64, "order", rows)
    shape = (len(spots), loading.shape[1])
    writer = MagnificationWriter(store, name, ENCODER, mpp, recipe, shape, chunk=CHUNK)
    for index in range(writer.n_chunks):
        part = field[list(writer.rows(index))]
        noise = rng.standard_normal((len(part), shape[1]), np.float32)
        inside = np.ones(len(part), np.float32)
        writer.write_chunk(index, part @ loading + 2 * noise, np.ones(len(part), np.bool_), inside)
    writer.finish({})


def write_counts(
    path: Path,
    spots: Spots,
    field: np.ndarray,
    effect: np.ndarray,
    level: np.ndarray,
    transcripts: float,
    rng: np.random.Generator,
) -> None:
    """Poisson counts, drawn transcript by transcript."""
    parts = []
    for start in range(0, len(spots), CHUNK):
        rate = np.exp(field[start : start + CHUNK] @ effect + level)
        rate *= transcripts / rate.sum(axis=1, keepdims=True)
        parts.append(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    table = anndata.AnnData(
        sparse.vstack(parts, format="csr"),
        obs=pd.DataFrame(index=list(spots.ids)),
        var=pd.DataFrame(index=[f"GENE{g}" for g in range(len(level))]),
        obsm={"spatial": spots.xy},
    )
    table.write_h5ad(path)


def cohort_of(out: Path, sizes: list[int]) -> Cohort:
    """The slides, each of a patient of its own."""
    rows = []
    for number in range(len(sizes)):
        file = out / f"S{number:03d}.h5ad"
        rows.append(CohortSlide(file.stem, f"P{number:03d}", spots=file, counts=file, reader="h5ad"))
    return Cohort(tuple(rows), "made slides")


def fit(
    out: Path, sizes: list[int], head: str, pairs: list[str], genes: str, baselines: bool
) -> dict[str, Any]:
    """What `mmap fit-head --test` does, the last slide being the test."""
    method = head_method(head)
    request = FitRequest(
        encoder=ENCODER,
        method=method,
        settings=parse_settings(method, pairs),
        genes=genes,
        test=f"slide=S{len(sizes) - 1:03d}",
        baselines=baselines,
    )
    steps: list[tuple[str, float]] = []
    store = FeatureStore.open(out / "features.zarr")

    def tell(text: str) -> None:
        steps.append((text, time.perf_counter()))

    report = fit_head(cohort_of(out, sizes), store, request, out / "run", tell)
    ends = [*(at for _, at in steps[1:]), time.perf_counter()]
    took: dict[str, float] = {}
    for (text, at), end in zip(steps, ends, strict=True):
        step = " ".join(text.split()[:2]) if text.startswith(("prototypes", "reading")) else text
        took[step] = round(took.get(step, 0.0) + end - at, 1)
    metrics = report.metrics
    found = {"test": metrics.test, "baseline_ridge": metrics.baseline_ridge}
    pcc = {name: scores.pcc_slide for name, scores in found.items() if scores is not None}
    return {"steps": took, "chosen": metrics.protocol.chosen, "pcc_slide": pcc, **metrics.seconds}


def predict(out: Path, sizes: list[int], without: int | None) -> dict[str, Any]:
    """What `mmap predict` does: on all slides, or with the counts of those that were not fitted on."""
    cohort, names = None, None
    if without is not None:
        cohort = cohort_of(out, sizes)
        names = list(cohort.names)[without:]
    store = FeatureStore.open(out / "features.zarr")
    predicted = predict_slides(out / "run", store, out / "predicted", names, cohort=cohort)
    pcc = {name: scores.pcc for name, scores in predicted.scores.items()}
    return {"slides": len(predicted.written), "failed": predicted.failed, "pcc": pcc}


def measured(what: str, function: Callable[..., dict[str, Any] | None], *arguments: Any) -> None:
    """Run in a new process, and print seconds, peak memory and what it returned as one line of JSON."""
    process = multiprocessing.get_context("spawn").Process(target=_report, args=(what, function, arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{what} failed")


def _report(what: str, function: Callable[..., dict[str, Any] | None], arguments: tuple[Any, ...]) -> None:
    began = time.perf_counter()
    found = function(*arguments) or {}
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gb": round(used.ru_maxrss / (1 << 20), 2),
    }
    print(json.dumps({"step": what, **figures, **found}), flush=True)


def main() -> None:
    """Write the cohort where it is not there, then measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/head-scale"))
    parser.add_argument("--sizes", default="300000,50000*14", help="spots of each slide, such as 800*26")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--transcripts", type=float, default=60.0, help="a spot, on average")
    parser.add_argument("--panel", default="hvg:250")
    parser.add_argument("--head", default="mmap")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-baselines", action="store_true")
    parser.add_argument("--fit-slides", type=int, help="fit on the first slides only, predict the others")
    parser.add_argument("--only-write", action="store_true", help="write the cohort, measure later")
    arguments = parser.parse_args()
    out: Path = arguments.out
    sizes = slide_sizes(arguments.sizes)
    if not (out / "features.zarr").exists():
        out.mkdir(parents=True, exist_ok=True)
        made = (out, sizes, arguments.width, arguments.genes, arguments.transcripts)
        measured("write", write_cohort, *made)
    options = (arguments.head, arguments.set, arguments.panel, not arguments.no_baselines)
    if arguments.only_write:
        return
    fitted: int | None = arguments.fit_slides
    measured("fit", fit, out, sizes[:fitted], *options)
    measured("predict", predict, out, sizes, fitted)


if __name__ == "__main__":
    main()
