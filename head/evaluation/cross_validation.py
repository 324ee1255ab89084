"""Cross-validation of one head: every fold's model and held-out predictions are saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmap_st.data import Cohort, Fold, files_named, harmonise_genes, make_folds
from mmap_st.errors import RequestError, SplitError, none_of
from mmap_st.extract.store import FeatureStore, check_same_recipe
from mmap_st.head.dataset import (
    check_encoders,
    check_tokens,
    encoders_of,
    magnifications_of_all,
    prototype_settings,
    read_cohort_counts,
    with_stored_patients,
)
from mmap_st.head.evaluation.aggregate import evaluation_metrics, gene_rows
from mmap_st.head.evaluation.fold_jobs import FoldJob, SharedInputs, plan_jobs
from mmap_st.head.evaluation.fold_runs import run_jobs
from mmap_st.head.evaluation.folder import (
    EvaluateRequest,
    link_files,
    record_request,
    request_contents,
)
from mmap_st.head.evaluation.results import EvaluationMetrics
from mmap_st.head.runs import (
    GENES,
    METRICS,
    NOT_SCORED,
    PREDICTIONS,
    FitRequest,
    choose_genes,
    notes_on_folds,
    prediction_file,
    read_metrics,
    restore_run,
    shared_patients_warning,
    write_table,
    writing,
)
from mmap_st.head.scoring import write_json
from mmap_st.progress import ProgressCallback
from mmap_st.prototypes import stored_candidates


@dataclass
class RunNotes:
    """What was left out of an evaluation or a comparison; filled while it runs.

    Attributes
    ----------
    skipped
        Slides that are missing something, with the reason.
    failed
        Slides that have a fault or could not be scored, with the reason.
    failed_folds
        Folds (of a comparison, of its rows) that could not be fitted or scored, with the reason.
    warnings
        What the user should know.
    """

    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    failed_folds: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ReadyCohort:
    """A cohort that can be cross-validated: counts read, folds and magnifications settled."""

    shared: SharedInputs
    store: FeatureStore
    rule: str
    folds: tuple[Fold, ...]
    mpps: tuple[float, ...]

    @property
    def patients(self) -> dict[str, str | None]:
        """Of every slide."""
        return {name: self.shared.cohort[name].patient for name in self.shared.counts}


def prepare_cohort(
    cohort: Cohort, store: FeatureStore, request: EvaluateRequest, notes: RunNotes, tell: ProgressCallback
) -> ReadyCohort:
    """Read counts, and settle folds and magnifications; slides that cannot be used go to `notes`."""
    fit = request.fit
    cohort = with_stored_patients(cohort, store)
    measured = read_cohort_counts(cohort, store, cohort.names, fit.encoder, fit.magnifications, tell)
    notes.skipped, notes.failed = measured.skipped, measured.failed
    if not measured.counts:
        check_encoders(store, encoders_of(fit.encoder, store))
        why = _some_reason({**measured.failed, **measured.skipped}).rstrip(".")
        raise SplitError(
            f"{none_of(len(cohort.slides), 'slide')} can be used (slide {why}); give a cohort of slides that"
            " are embedded and have counts."
        )
    rule, folds = make_folds(cohort, tuple(measured.counts), request.folds)
    shared = sorted({patient for fold in folds for patient in fold.split.shared_patients})
    if shared:
        notes.warnings.append(shared_patients_warning(shared))
    stored = [store.slide(name) for name in measured.counts]
    encoders = encoders_of(fit.encoder, store)
    mpps = magnifications_of_all(stored, encoders, fit.magnifications)
    for encoder in encoders:
        check_same_recipe(stored, encoder, mpps)
    return ReadyCohort(SharedInputs(cohort, store.path, measured.counts), store, rule, folds, mpps)


def cross_validate(
    ready: ReadyCohort, request: EvaluateRequest, out: Path, notes: RunNotes, tell: ProgressCallback
) -> EvaluationMetrics:
    """Run the missing folds, and write metrics.json, genes.csv and predictions/.

    Raises
    ------
    RequestError
        If no fold can be evaluated.
    """
    notes.warnings += check_genes(ready, request.fit)
    jobs = plan_fits(ready, request, out, tell)
    failed = run_jobs(ready.shared, jobs, tell, request.jobs, request.ray)
    return collect_results(ready, request, jobs, failed, out, notes)


def check_genes(ready: ReadyCohort, fit: FitRequest) -> list[str]:
    """Refuse an impossible panel before any work: it is the same request in all folds.

    Returns
    -------
    What to say of genes that are named and missing.

    Raises
    ------
    RequestError
        If the panel is not possible.
    """
    choose_genes(ready.store, fit, ready.folds[0].split, harmonise_genes(ready.shared.counts))
    return notes_on_folds(fit, ready.folds, ready.shared.counts)


def plan_fits(
    ready: ReadyCohort, request: EvaluateRequest, out: Path, tell: ProgressCallback, row: str = ""
) -> list[FoldJob]:
    """Check the request, record it in the folder, build missing candidates, and list the fits.

    Raises
    ------
    RequestError
        If it cannot be met, or the folder holds folds of another request.
    """
    fit = replace(request.fit, mpps=ready.mpps)
    counts = ready.shared.counts
    stored = [ready.store.slide(name) for name in counts]
    for encoder in encoders_of(fit.encoder, ready.store):
        check_tokens(stored, encoder, ready.mpps, fit.method)
    record_request(
        out,
        request_contents(
            fit,
            ready.folds,
            ready.store,
            ready.mpps,
            ready.shared.counts_sha256,
            ready.patients,
            files_named(fit.panel, counts.values()),
        ),
    )
    jobs = plan_jobs(fit, ready.folds, request.seeds, out, row)
    for job in jobs:
        restore_run(job.out)
    if not all(job.done for job in jobs):
        _build_candidates(ready, fit, request.seeds, tell)
    return jobs


def collect_results(
    ready: ReadyCohort,
    request: EvaluateRequest,
    jobs: Sequence[FoldJob],
    failures: Mapping[Path, str],
    out: Path,
    notes: RunNotes,
) -> EvaluationMetrics:
    """Write metrics.json, genes.csv and predictions/ of fits that have run.

    Parameters
    ----------
    jobs
        All fits.
    failures
        Why some fits failed, by folder.

    Raises
    ------
    RequestError
        If none has run.
    """
    failed = {job.fold.name: failures[job.out] for job in jobs if job.out in failures}
    jobs = [job for job in jobs if job.fold.name not in failed]
    if not jobs:
        raise RequestError(f"no fold can be evaluated; fold {_some_reason(failed)}")
    notes.failed_folds |= failed
    runs = {(job.fold.name, job.request.seed): read_metrics(job.out / METRICS) for job in jobs}
    metrics = evaluation_metrics(runs, ready.patients, ready.rule, request.fit.protocol.name)
    for job in jobs:
        for name in job.fold.split.test:
            if name not in metrics.test.slides:
                notes.failed[name] = NOT_SCORED
    first = [job for job in jobs if job.request.seed == request.seeds[0]]
    files = [prediction_file(job.out / PREDICTIONS, name) for job in first for name in job.fold.split.test]
    with writing(out):
        write_table(out / GENES, gene_rows([job.out / GENES for job in jobs]))
        link_files(files, out / PREDICTIONS)
        write_json(out / METRICS, metrics)
    return metrics


def _some_reason(reasons: Mapping[str, str]) -> str:
    name, why = next(iter(reasons.items()))
    return f"{name}: {why}"


def _build_candidates(
    ready: ReadyCohort, fit: FitRequest, seeds: Sequence[int], tell: ProgressCallback
) -> None:
    """Build missing candidates before any fit: parallel fits would wait for each other."""
    encoders = encoders_of(fit.encoder, ready.store)
    for wanted in {prototype_settings(fit.settings, seed) for seed in seeds} - {None}:
        assert wanted is not None
        for name in ready.shared.counts:
            tell(f"prototypes of {name}")
            slide = ready.store.slide(name)
            for encoder in encoders:
                stored_candidates(ready.store, slide, encoder, ready.mpps, wanted.candidates)
