"""Measure whether magnifications and prototypes pay where they should, and only there.

`make benchmark-demo` runs it. For each seed a cohort is simulated three times: with all effects, without the
slide factor, and without the coarse effects. The head, ridge and the head's ablations are fitted on the same
patients and scored on others. It prints tables and writes them, with every figure, to the output folder; run
again there, it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mmap_st.data.readers import open_cohort
from mmap_st.data.splits import where_text
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine.device import keep_freed_memory
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.interface import parse_settings
from mmap_st.head.registry import head_method
from mmap_st.head.runs import METRICS as RUN_METRICS
from mmap_st.head.runs import read_metrics
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.request import FitRequest
from mmap_st.workflows.demo import ENCODER, MPPS, held_out_patients
from mmap_st.workflows.simulation import SimulationSettings, simulate_cohort

METRICS = ("pcc_slide", "pcc_pooled", "mse", "mae")
COHORTS = {
    "all effects": {},
    "no slide factor": {"slide_factor": False},
    "no coarse effects": {"coarse": False},
}
FULL = "mmap, all magnifications"
NO_PROTOTYPES = "mmap, no prototypes"
RIDGE = "ridge, all magnifications"
ONE = {mpp: f"mmap, {mpp:g} um/px alone" for mpp in MPPS}
# Which rows each cohort is for.
ROWS = {
    "all effects": (FULL, NO_PROTOTYPES, *ONE.values()),
    "no slide factor": (FULL, NO_PROTOTYPES),
    "no coarse effects": (FULL, ONE[MPPS[0]]),
}

Row = dict[str, float]  # metric
Scores = dict[str, dict[str, Row]]  # cohort, row


def _set_up_process() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()


def run_cohort(folder: Path, settings: SimulationSettings, seed: int, name: str) -> dict[str, Row]:
    """Scores of every row on one cohort of one seed; what an interrupted benchmark finished is kept."""
    root, store_path = folder / "her2st", folder / "features.zarr"
    if not root.is_dir():
        draft = folder / "her2st.draft"
        shutil.rmtree(draft, ignore_errors=True)
        simulate_cohort(draft, replace(settings, **COHORTS[name]), seed)
        draft.rename(root)
    cohort = open_cohort(f"her2st:{root}")
    extracted = extract_cohort(cohort, store_path, EncoderRequest(encoder_spec(ENCODER)), MPPS)
    assert not extracted.failed, extracted.failed
    method = head_method("mmap")
    scores: dict[str, Row] = {}
    for row in ROWS[name]:
        mpps = next(((mpp,) for mpp, one in ONE.items() if one == row), MPPS)
        request = FitRequest(
            encoder=ENCODER,
            method=method,
            settings=parse_settings(method, ["prototypes=none"] if row == NO_PROTOTYPES else []),
            genes="all",
            test=where_text({"patient": held_out_patients(cohort)}),
            mpps=mpps,
            seed=seed,
        )
        run = folder / "runs" / row.replace(", ", "-").replace(" ", "-").replace("/", "-")
        if not (run / RUN_METRICS).is_file():
            fit_head(cohort, FeatureStore.open(store_path), request, run)
        metrics = read_metrics(run / RUN_METRICS)
        scores[row] = {key: metrics.test.value(key) for key in METRICS}
        if row == FULL:
            scores[RIDGE] = {key: metrics.baseline_ridge.value(key) for key in METRICS}
            scores["training mean"] = {key: metrics.baseline_mean.value(key) for key in METRICS}
        print(f"seed {seed}, {name}, {row}: {scores[row]}", flush=True)
    return scores


def difference(seeds: Sequence[Scores], cohort: str, row: str, metric: str) -> tuple[float, float]:
    """Mean and spread over seeds of how much better the full head is than `row`."""
    sign = 1.0 if metric.startswith("pcc") else -1.0
    gains = [sign * (s[cohort][FULL][metric] - s[cohort][row][metric]) for s in seeds]
    return float(np.mean(gains)), float(np.std(gains, ddof=1)) if len(gains) > 1 else float("nan")


def tables(seeds: Sequence[Scores]) -> str:
    """Markdown: the scores, then what is claimed of them."""
    lines = []
    for cohort in COHORTS:
        lines += [
            f"**{cohort}**",
            "",
            "| | PCC (per slide) | PCC (pooled) | MSE | MAE |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in seeds[0][cohort]:
            values = np.array([[s[cohort][row][metric] for metric in METRICS] for s in seeds])
            spread = values.std(axis=0, ddof=1) if len(seeds) > 1 else np.full(len(METRICS), np.nan)
            cells = [f"{m:.4f} ± {sd:.4f}" for m, sd in zip(values.mean(axis=0), spread, strict=True)]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["| claim | mean gain | spread over seeds | holds |", "| --- | --- | --- | --- |"]
    lines += [_claim(seeds, "all effects", row, metric, gains=True) for row, metric in GAINS]
    lines += [
        _claim(seeds, "no slide factor", NO_PROTOTYPES, m, gains=False)
        for m in ("pcc_slide", "pcc_pooled", "mse")
    ]
    lines += [_claim(seeds, "no coarse effects", ONE[MPPS[0]], "pcc_slide", gains=False)]
    return "\n".join(lines) + "\n"


GAINS = (
    (RIDGE, "pcc_slide"),
    (RIDGE, "pcc_pooled"),
    (RIDGE, "mse"),
    *((row, "pcc_slide") for row in ONE.values()),
    (NO_PROTOTYPES, "mse"),
    (NO_PROTOTYPES, "pcc_pooled"),
)


def _claim(seeds: Sequence[Scores], cohort: str, row: str, metric: str, *, gains: bool) -> str:
    mean, spread = difference(seeds, cohort, row, metric)
    holds = mean > spread if gains else mean <= spread
    verb = "beats" if gains else "gains nothing over"
    claim = f"{cohort}: the head {verb} {row}, {metric}"
    return f"| {claim} | {mean:+.4f} | {spread:.4f} | {'yes' if holds else 'NO'} |"


def main() -> None:
    """Run all seeds and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--patients", type=int, default=SimulationSettings().patients)
    arguments = parser.parse_args()
    started = time.perf_counter()
    settings = SimulationSettings(patients=arguments.patients)
    numbers = [int(seed) for seed in arguments.seeds.split(",")]
    # One cohort a core, one thread each: the fits are too small to gain from more threads.
    context = multiprocessing.get_context("spawn")
    jobs = [(seed, name) for name in COHORTS for seed in numbers]
    with ProcessPoolExecutor(arguments.jobs, context, _set_up_process) as pool:
        running = {
            (seed, name): pool.submit(
                run_cohort, arguments.out / f"seed{seed}" / name.replace(" ", "-"), settings, seed, name
            )
            for seed, name in jobs
        }
        seeds = [{name: running[seed, name].result() for name in COHORTS} for seed in numbers]
    text = tables(seeds)
    (arguments.out / "demo.md").write_text(text, "utf-8")
    (arguments.out / "demo.json").write_text(
        json.dumps(dict(zip(numbers, seeds, strict=True)), indent=2), "utf-8"
    )
    print(text)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
