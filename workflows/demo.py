"""`mmap demo`: the whole pipeline on simulated tissue, by the same calls that the commands make."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmap_st.data import Cohort, write_cohort
from mmap_st.data.readers import open_cohort
from mmap_st.errors import RequestError
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine import EncoderRequest, extract_cohort
from mmap_st.extract.store import FeatureStore
from mmap_st.head import head_method, parse_settings
from mmap_st.head.runs import FitRequest, RunMetrics, fit_head
from mmap_st.progress import Progress
from mmap_st.report import report_run
from mmap_st.workflows.simulation import SimulationSettings, simulate_cohort

ENCODER = "efficientnet-lite0"
MPPS = (0.5, 1.0, 2.0)
#: Enough to show the effects, and little enough for a few minutes on two slow cores; the benchmark has more.
SETTINGS = SimulationSettings(patients=12, size_um=2600.0)
_MARK = ".mmap-demo"
# All that a demo makes: what else a user keeps there stays.
_COHORT, _MADE = "cohort.csv", ("her2st", "features.zarr", "features.zarr.locks", "run", "report")


@dataclass(frozen=True)
class DemoResult:
    """Contents of metrics.json, the pictures, the folder of the run, and seconds of each step."""

    metrics: RunMetrics
    pictures: list[Path]
    run: Path
    seconds: dict[str, float]


def held_out_patients(cohort: Cohort) -> str:
    """WHERE of the test slides: every fourth patient."""
    patients = list(dict.fromkeys(slide.patient for slide in cohort.slides if slide.patient))
    return "patient=" + ",".join(patients[1::4])


def run_demo(
    out: Path,
    settings: SimulationSettings,
    seed: int,
    tell: Callable[[str], None],
    progress: Progress,
) -> DemoResult:
    """Simulate a cohort, embed it, train the head on some patients and score it on others.

    Raises
    ------
    RequestError
        If `out` holds something that is not an earlier demo.
    """
    if out.exists() and any(out.iterdir()) and not (out / _MARK).is_file():
        raise RequestError(f"--out {out} holds other things than an earlier demo; name another folder.")
    out.mkdir(parents=True, exist_ok=True)
    for name in _MADE:
        shutil.rmtree(out / name, ignore_errors=True)
    (out / _COHORT).unlink(missing_ok=True)
    (out / _MARK).touch()
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def lap(step: str) -> None:
        seconds[step] = time.perf_counter() - started - sum(seconds.values())

    tell("simulating tissue")
    simulate_cohort(
        out / "her2st",
        settings,
        seed,
        lambda name: tell(f"simulating tissue: {name}"),
        processes=os.cpu_count() or 1,
    )
    cohort = open_cohort(f"her2st:{out / 'her2st'}")
    write_cohort(cohort, out / _COHORT)
    lap("simulate")

    tell("embedding spots")
    store_path = out / "features.zarr"
    request = EncoderRequest(encoder_spec(ENCODER))
    extracted = extract_cohort(cohort, store_path, request, MPPS, progress=progress)
    if extracted.failed:
        name, reason = next(iter(extracted.failed.items()))
        raise RequestError(f"the demo's slide {name} failed: {reason}")
    lap("extract")

    store = FeatureStore.open(store_path)
    method = head_method("mmap")
    fit = FitRequest(
        encoder=ENCODER,
        method=method,
        settings=parse_settings(method, []),
        genes="all",
        test=held_out_patients(cohort),
        seed=seed,
    )
    report = fit_head(cohort, store, fit, out / "run", tell)
    lap("fit-head")

    tell("drawing")
    pictures = report_run(out / "run", out / "report", store=store)
    lap("report")
    return DemoResult(report.metrics, pictures, out / "run", seconds)
