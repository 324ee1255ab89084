"""Measure the `mmap` head against ridge at any strength, and against its own ablations, on a cohort.

`python benchmarks/head.py COHORT STORE --encoders a,b --genes PANEL --split "C2,C3>C4" --out FOLDER`: each
split names its training and its test slides. Ridge is shown at the strength that is best for per-slide PCC on
that very test, which no user can know, and at its own choice. One row of results is written to results.csv
when it is done; a row that is there is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmap_st.data.readers import open_cohort
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.interface import parse_settings
from mmap_st.head.linear.ridge import ALPHAS
from mmap_st.head.registry import head_method
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.request import FitRequest

METRICS = ("pcc_slide", "pcc_slide_hvg50", "mse", "mae")
STRENGTHS = ",".join(f"{alpha:g}" for alpha in ALPHAS if alpha >= 1e3)
FIELDS = ("encoder", "split", "row", "seed", *METRICS, "seconds")


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One fit."""
    train, test = job["split"].split(">")
    method = head_method(job["head"])
    request = FitRequest(
        encoder=job["encoder"],
        method=method,
        settings=parse_settings(method, job["set"]),
        genes=job["genes"],
        train=f"slide={train}",
        test=f"slide={test}",
        mpps=job["mpps"],
        seed=job["seed"],
    )
    began = time.perf_counter()
    cohort, store = open_cohort(job["cohort"]), FeatureStore.open(Path(job["store"]))
    name = "-".join([job["encoder"], job["split"].replace(">", "_to_"), job["row"], str(job["seed"])])
    report = fit_head(cohort, store, request, Path(job["out"]) / "runs" / name.replace(" ", "_"))
    scores = {metric: report.metrics.test.value(metric) for metric in METRICS}
    return {**{k: job[k] for k in FIELDS[:4]}, **scores, "seconds": time.perf_counter() - began}


def jobs_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What there is to measure."""
    common = {key: getattr(arguments, key) for key in ("cohort", "store", "genes", "out")}
    mpps = tuple(float(mpp) for mpp in arguments.mpp.split(","))
    rows: list[tuple[str, str, list[str], tuple[float, ...], int]] = [("mean", "mean", [], mpps, 1)]
    strengths = [s for s in arguments.strengths.split(",") if s]
    rows += [(f"ridge alpha={s}", "ridge", [f"alpha={s}"], mpps, 1) for s in (*strengths, "auto")]
    rows += [("mmap", "mmap", [], mpps, arguments.seeds)]
    if arguments.ablate:
        rows += [("mmap, no prototypes", "mmap", ["prototypes=none"], mpps, arguments.seeds)]
        rows += [(f"mmap, {mpp:g} um/px alone", "mmap", [], (mpp,), arguments.seeds) for mpp in mpps]
    return [
        {**common, "encoder": encoder, "split": split, "row": row, "head": head, "set": settings,
         "mpps": used, "seed": seed}
        for encoder in arguments.encoders.split(",")
        for split in arguments.split
        for row, head, settings, used, seeds in rows
        for seed in range(seeds)
    ]  # fmt: skip


def table(results: list[dict[str, str]]) -> str:
    """Markdown: a block for each encoder and split, means over seeds with their spread."""
    lines = []
    for encoder, split in dict.fromkeys((r["encoder"], r["split"]) for r in results):
        here = [r for r in results if (r["encoder"], r["split"]) == (encoder, split)]
        strengths = [r for r in here if r["row"].startswith("ridge alpha=") and "auto" not in r["row"]]
        best = max(strengths, key=lambda r: float(r["pcc_slide"]))["row"] if strengths else ""
        lines += [f"**{encoder}, {split}**", "", "| | PCC (per slide) | PCC (hvg50) | MSE | MAE |",
                  "| --- | --- | --- | --- | --- |"]  # fmt: skip
        for row in dict.fromkeys(r["row"] for r in here):
            if row in {r["row"] for r in strengths} and row != best:
                continue
            values = np.array([[float(r[m]) for m in METRICS] for r in here if r["row"] == row])
            cells = [
                f"{m:.4f}" + (f" ± {sd:.4f}" if len(values) > 1 else "")
                for m, sd in zip(values.mean(0), values.std(0, ddof=len(values) > 1), strict=True)
            ]
            name = f"{row} (best on this test)" if row == best else row
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _set_up_process() -> None:
    torch.set_num_threads(1)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cohort")
    parser.add_argument("store")
    parser.add_argument("--encoders", required=True)
    parser.add_argument("--genes", default="hvg:250")
    parser.add_argument("--mpp", default="0.25,0.5,1,2")
    parser.add_argument("--split", action="append", required=True, help="such as C2,C3>C4")
    parser.add_argument("--strengths", default=STRENGTHS, help="of ridge; empty: only its own choice")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ablate", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "results.csv"
    done = list(csv.DictReader(file.open())) if file.exists() else []
    known = {(r["encoder"], r["split"], r["row"], int(r["seed"])) for r in done}
    jobs = [j for j in jobs_of(arguments) if (j["encoder"], j["split"], j["row"], j["seed"]) not in known]
    with (
        ProcessPoolExecutor(arguments.jobs, get_context("spawn"), _set_up_process) as pool,
        file.open("a", newline="") as out,
    ):
        writer = csv.DictWriter(out, FIELDS)
        if not done:
            writer.writeheader()
        for result in pool.map(measure, jobs):
            writer.writerow(result)
            out.flush()
            print(", ".join(f"{k} {v:.4f}" if isinstance(v, float) else str(v) for k, v in result.items()))
    text = table(list(csv.DictReader(file.open())))
    (arguments.out / "head.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
