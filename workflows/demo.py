"""`mmap demo`: the whole pipeline on simulated tissue, by the public functions."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from mmap_st.data import Cohort, write_cohort
from mmap_st.errors import RequestError, SlidesFailedError
from mmap_st.files import check_folder_out, writing
from mmap_st.head.runs import RunMetrics
from mmap_st.report import report_results
from mmap_st.workflows.arguments import read_cohort
from mmap_st.workflows.display import show_progress
from mmap_st.workflows.embedding import embed
from mmap_st.workflows.fitting import fit_head
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
    """Contents of metrics.json, pictures and page, the folder of the run, and seconds of each step."""

    metrics: RunMetrics
    pictures: list[Path]
    run: Path
    seconds: dict[str, float]


def held_out_patients(cohort: Cohort) -> list[str]:
    """Patients of the test slides: every fourth."""
    patients = list(dict.fromkeys(slide.patient for slide in cohort.slides if slide.patient))
    return patients[1::4]


def run_demo(
    out: Path, settings: SimulationSettings = SETTINGS, seed: int = 0, *, progress: bool = True
) -> DemoResult:
    """Simulate a cohort, embed it, train the head on some patients and score it on others.

    Raises
    ------
    RequestError
        If `out` holds something that is not an earlier demo.
    """
    check_folder_out(out)
    if out.exists() and any(out.iterdir()) and not (out / _MARK).is_file():
        raise RequestError(f"--out {out} holds other things than an earlier demo; name another folder.")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for name in _MADE:
            shutil.rmtree(out / name, ignore_errors=True)
        (out / _COHORT).unlink(missing_ok=True)
        (out / _MARK).touch()
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def lap(step: str) -> None:
        seconds[step] = time.perf_counter() - started - sum(seconds.values())

    with writing(out), show_progress(progress) as tell:
        simulate_cohort(
            out / "her2st",
            settings,
            seed,
            lambda name: tell(f"simulating tissue: {name}"),
            processes=os.cpu_count() or 1,
        )
    cohort = read_cohort(f"her2st:{out / 'her2st'}")
    write_cohort(cohort, out / _COHORT)
    lap("simulate")

    store = embed(cohort, out / "features.zarr", encoder=ENCODER, mpp=MPPS, progress=progress)
    if store.report.failed:
        name, reason = next(iter(store.report.failed.items()))
        raise RequestError(f"the demo's slide {name} failed: {reason}")
    lap("extract")

    run = fit_head(
        cohort,
        store,
        encoder=ENCODER,
        genes="all",
        test={"patient": held_out_patients(cohort)},
        seed=seed,
        out=out / "run",
        progress=progress,
    )
    lap("fit-head")

    with show_progress(progress) as tell:
        drawn = report_results([out / "run"], out / "report", store=store, tell=tell)
    lap("report")
    if drawn.failed:
        raise SlidesFailedError(drawn.failed)
    return DemoResult(run.metrics, drawn.written, out / "run", seconds)
