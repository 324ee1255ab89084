"""Cross-validation of one head: every fold's model and held-out predictions are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmap_st.data.cohort import Cohort
from mmap_st.data.folds import Fold, make_folds
from mmap_st.errors import RequestError, SplitError
from mmap_st.extract.store import FeatureStore, check_encoder, check_same_recipe, common_magnifications
from mmap_st.head.dataset import measure, prototype_settings
from mmap_st.head.evaluation.jobs import Job, Material, jobs_side_by_side, plan_jobs, run_jobs
from mmap_st.head.evaluation.request import EvaluateRequest, check_request, describe
from mmap_st.head.evaluation.summary import evaluation_metrics, gene_rows
from mmap_st.head.fit import shared_patients_warning
from mmap_st.head.predictions import prediction_file
from mmap_st.head.run_folder import GENES, METRICS, PREDICTIONS, read_json, write_json, write_table
from mmap_st.prototypes.stored import stored_candidates

Tell = Callable[[str], None]
_LOCK = ".lock"


@dataclass
class EvaluateReport:
    """What was evaluated.

    Attributes
    ----------
    metrics
        Contents of metrics.json.
    ablations
        One row a variant of the head, where they were asked for.
    passed_over, failed
        Slides that were not used, with the reason.
    failed_folds
        Folds that could not be fitted or scored, with the reason.
    warnings
        What the user should know.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    ablations: list[dict[str, Any]] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    failed_folds: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Prepared:
    """A cohort that is ready to be cross-validated: its folds, counts and magnifications."""

    material: Material
    store: FeatureStore
    rule: str
    folds: tuple[Fold, ...]
    mpps: tuple[float, ...]

    @property
    def patients(self) -> dict[str, str]:
        """Of every slide; a slide without a patient is its own."""
        return {name: self.material.cohort[name].patient or name for name in self.material.counts}

    def embeddings_bytes(self, encoder: str) -> int:
        """Size of the embeddings of all slides, as float32."""
        total = 0
        for name, table in self.material.counts.items():
            complete = self.store.slide(name).complete(encoder)
            total += sum(complete[mpp].width for mpp in self.mpps) * len(table.ids) * 4
        return total


def prepare(
    cohort: Cohort, store: FeatureStore, request: EvaluateRequest, report: EvaluateReport, tell: Tell
) -> Prepared:
    """Read counts, and settle folds and magnifications; slides that cannot be used go to `report`."""
    fit = request.fit
    measured = measure(cohort, store, cohort.names, fit.encoder, fit.magnifications, tell)
    report.passed_over, report.failed = measured.passed_over, measured.failed
    if not measured.counts:
        check_encoder(store, fit.encoder)
        why = some_reason({**measured.failed, **measured.passed_over})
        raise SplitError(f"none of the {len(cohort.slides)} slides can be used; slide {why}")
    rule, folds = make_folds(cohort, tuple(measured.counts), request.folds)
    shared = sorted({patient for fold in folds for patient in fold.split.shared_patients})
    if shared:
        report.warnings.append(shared_patients_warning(shared))
    stored = [store.slide(name) for name in measured.counts]
    mpps = common_magnifications(stored, fit.encoder, fit.magnifications)
    check_same_recipe(stored, fit.encoder, mpps)
    return Prepared(Material(cohort, store.path, measured.counts), store, rule, folds, mpps)


def cross_validate(
    ready: Prepared, request: EvaluateRequest, out: Path, report: EvaluateReport, tell: Tell
) -> dict[str, Any]:
    """Run the folds that are not done, and write metrics.json, genes.csv and predictions/ anew."""
    fit = replace(request.fit, mpps=ready.mpps)
    material = ready.material
    check_request(out, describe(fit, ready.folds, ready.store, ready.mpps, material.counts))
    jobs = plan_jobs(fit, ready.folds, request.seeds, out)
    if not all(job.done for job in jobs):
        _build_candidates(ready, fit.settings, request.seeds, fit.encoder, tell)
        side_by_side = jobs_side_by_side(request.jobs, len(jobs), ready.embeddings_bytes(fit.encoder))
        report.failed_folds |= run_jobs(material, jobs, side_by_side, tell)
    jobs = [job for job in jobs if job.fold.name not in report.failed_folds]
    if not jobs:
        raise RequestError(f"no fold can be evaluated; {some_reason(report.failed_folds)}")
    runs = {(job.fold.name, job.request.seed): read_json(job.out / METRICS) for job in jobs}
    metrics = evaluation_metrics(runs, ready.patients, ready.rule, fit.protocol.name)
    write_table(out / GENES, gene_rows([job.out / GENES for job in jobs]))
    _gather_predictions([job for job in jobs if job.request.seed == request.seeds[0]], out / PREDICTIONS)
    draft = out / f".{METRICS}.unfinished"
    write_json(draft, metrics)
    draft.replace(out / METRICS)
    return metrics


@contextmanager
def evaluation_folder(out: Path) -> Iterator[None]:
    """Hold the one right to write into an evaluation's folder.

    Raises
    ------
    RequestError
        If another process holds it, or the folder cannot be made.
    """
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file; name a folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / _LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise RequestError(f"{out} is being written by another evaluation; wait until it ends.") from error
    except OSError as error:
        raise RequestError(
            f"--out {out} cannot be written ({error.strerror}); name another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


def some_reason(reasons: Mapping[str, str]) -> str:
    """The first of them."""
    name, why = next(iter(reasons.items()))
    return f"{name}: {why}"


def _build_candidates(ready: Prepared, settings: Any, seeds: Sequence[int], encoder: str, tell: Tell) -> None:
    """Build what is missing before any fit: fits side by side would wait for each other."""
    for seed in seeds:
        wanted = prototype_settings(settings, seed)
        if wanted is None:
            return
        for name in ready.material.counts:
            tell(f"prototypes of {name}")
            slide = ready.store.slide(name)
            stored_candidates(ready.store, slide, encoder, ready.mpps, wanted.candidates)


def _gather_predictions(jobs: Sequence[Job], folder: Path) -> None:
    """Show the held-out predictions of the first seed in one folder, by links where these can be made."""
    draft = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    for job in jobs:
        for name in job.fold.split.test:
            made = prediction_file(job.out / PREDICTIONS, name)
            place = draft / made.name
            try:
                os.link(made, place)
            except OSError:
                shutil.copyfile(made, place)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
