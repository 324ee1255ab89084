"""Cross-validation of one head: every fold's model and held-out predictions are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmap_st.data import Cohort, Fold, harmonise_genes, make_folds
from mmap_st.errors import RequestError, SplitError
from mmap_st.extract.store import FeatureStore, check_encoder, check_same_recipe, common_magnifications
from mmap_st.head.dataset import check_tokens, prototype_settings, read_cohort_counts, with_stored_patients
from mmap_st.head.evaluation.aggregate import evaluation_metrics, gene_rows
from mmap_st.head.evaluation.fold_jobs import Job, Material, jobs_side_by_side, plan_jobs, run_jobs
from mmap_st.head.evaluation.folder import (
    EvaluateRequest,
    describe,
    keep_request,
    link_files,
    write_json_whole,
)
from mmap_st.head.runs import (
    GENES,
    METRICS,
    PREDICTIONS,
    FitRequest,
    choose_genes,
    prediction_file,
    read_json,
    shared_patients_warning,
    write_table,
    writing,
)
from mmap_st.prototypes import stored_candidates

Tell = Callable[[str], None]


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
        Slides that were not used or not scored, with the reason.
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
class ReadyCohort:
    """A cohort that can be cross-validated: counts read, folds and magnifications settled."""

    material: Material
    store: FeatureStore
    rule: str
    folds: tuple[Fold, ...]
    mpps: tuple[float, ...]

    @property
    def patients(self) -> dict[str, str | None]:
        """Of every slide."""
        return {name: self.material.cohort[name].patient for name in self.material.counts}


def read_cohort(
    cohort: Cohort, store: FeatureStore, request: EvaluateRequest, report: EvaluateReport, tell: Tell
) -> ReadyCohort:
    """Read counts, and settle folds and magnifications; slides that cannot be used go to `report`."""
    fit = request.fit
    cohort = with_stored_patients(cohort, store)
    measured = read_cohort_counts(cohort, store, cohort.names, fit.encoder, fit.magnifications, tell)
    report.passed_over, report.failed = measured.skipped, measured.failed
    if not measured.counts:
        check_encoder(store, fit.encoder)
        why = _some_reason({**measured.failed, **measured.skipped})
        raise SplitError(f"none of the {len(cohort.slides)} slides can be used; slide {why}")
    rule, folds = make_folds(cohort, tuple(measured.counts), request.folds)
    shared = sorted({patient for fold in folds for patient in fold.split.shared_patients})
    if shared:
        report.warnings.append(shared_patients_warning(shared))
    stored = [store.slide(name) for name in measured.counts]
    mpps = common_magnifications(stored, fit.encoder, fit.magnifications)
    check_same_recipe(stored, fit.encoder, mpps)
    return ReadyCohort(Material(cohort, store.path, measured.counts), store, rule, folds, mpps)


def cross_validate(
    ready: ReadyCohort, request: EvaluateRequest, out: Path, report: EvaluateReport, tell: Tell
) -> dict[str, Any]:
    """Run the folds that are not done, and write metrics.json, genes.csv and predictions/ anew.

    Raises
    ------
    RequestError
        If no fold can be evaluated.
    """
    check_genes(ready, request.fit)
    jobs = prepare(ready, request, out, tell)
    failed: dict[Path, str] = {}
    if not all(job.done for job in jobs):
        settings, counts_bytes = request.fit.settings, ready.material.counts_bytes
        side_by_side = jobs_side_by_side(request.jobs, len(jobs), settings, counts_bytes)
        failed = run_jobs(ready.material, jobs, side_by_side, tell)
    return collect(ready, request, jobs, failed, out, report)


def check_genes(ready: ReadyCohort, fit: FitRequest) -> None:
    """Refuse a panel that cannot be had before any work: all folds ask for the same.

    Raises
    ------
    RequestError
        If it cannot.
    """
    choose_genes(ready.store, fit, ready.folds[0].split, harmonise_genes(ready.material.counts))


def prepare(ready: ReadyCohort, request: EvaluateRequest, out: Path, tell: Tell, row: str = "") -> list[Job]:
    """Check what is asked, keep it in the folder, build what candidates are missing, and list the fits.

    Raises
    ------
    RequestError
        If it cannot be met, or the folder holds another request's folds.
    """
    fit = replace(request.fit, mpps=ready.mpps)
    counts = ready.material.counts
    check_tokens([ready.store.slide(name) for name in counts], fit.encoder, ready.mpps, fit.method)
    keep_request(
        out, describe(fit, ready.folds, ready.store, ready.mpps, ready.material.counts_sha256, ready.patients)
    )
    jobs = plan_jobs(fit, ready.folds, request.seeds, out, row)
    if not all(job.done for job in jobs):
        _build_candidates(ready, fit, request.seeds, tell)
    return jobs


def collect(
    ready: ReadyCohort,
    request: EvaluateRequest,
    jobs: Sequence[Job],
    failures: Mapping[Path, str],
    out: Path,
    report: EvaluateReport,
) -> dict[str, Any]:
    """Write metrics.json, genes.csv and predictions/ of fits that have run.

    Parameters
    ----------
    jobs
        All of them.
    failures
        Why some have not, by their folder.

    Raises
    ------
    RequestError
        If none has.
    """
    failed = {job.fold.name: failures[job.out] for job in jobs if job.out in failures}
    jobs = [job for job in jobs if job.fold.name not in failed]
    if not jobs:
        raise RequestError(f"no fold can be evaluated; fold {_some_reason(failed)}")
    report.failed_folds |= failed
    runs = {(job.fold.name, job.request.seed): read_json(job.out / METRICS) for job in jobs}
    metrics = evaluation_metrics(runs, ready.patients, ready.rule, request.fit.protocol.name)
    for job in jobs:
        for name in job.fold.split.test:
            if name not in metrics["test"]["slides"]:
                report.failed[name] = "none of its spots has both a valid embedding and a target"
    first = [job for job in jobs if job.request.seed == request.seeds[0]]
    files = [prediction_file(job.out / PREDICTIONS, name) for job in first for name in job.fold.split.test]
    with writing(out):
        write_table(out / GENES, gene_rows([job.out / GENES for job in jobs]))
        link_files(files, out / PREDICTIONS)
        write_json_whole(out / METRICS, metrics)
    return metrics


def _some_reason(reasons: Mapping[str, str]) -> str:
    name, why = next(iter(reasons.items()))
    return f"{name}: {why}"


def _build_candidates(ready: ReadyCohort, fit: FitRequest, seeds: Sequence[int], tell: Tell) -> None:
    """Build what is missing before any fit: fits side by side would wait for each other."""
    for wanted in {prototype_settings(fit.settings, seed) for seed in seeds} - {None}:
        assert wanted is not None
        for name in ready.material.counts:
            tell(f"prototypes of {name}")
            slide = ready.store.slide(name)
            stored_candidates(ready.store, slide, fit.encoder, ready.mpps, wanted.candidates)
