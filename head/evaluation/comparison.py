"""`mmap compare`: run the missing fits of every row, and summarise them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmap_st.data import Cohort, read_labels
from mmap_st.data.readers import local_table
from mmap_st.errors import HeadError, LabelsError, RemoteError, RequestError, SplitError, none_of
from mmap_st.extract.store import (
    FeatureStore,
    check_same_recipe,
    encode_name,
)
from mmap_st.extract.windows import mpp_key
from mmap_st.head.dataset import (
    check_encoders,
    check_tokens,
    encoders_of,
    magnifications_of_all,
    missing_embedding_reason,
)
from mmap_st.head.evaluation.comparison_rows import (
    CompareRequest,
    Mpps,
    Row,
    compare_rows,
    evaluated_row,
    make_rows,
    scatter_pair,
    unevaluated_row,
)
from mmap_st.head.evaluation.cross_validation import (
    ReadyCohort,
    RunNotes,
    check_genes,
    collect_results,
    plan_fits,
    prepare_cohort,
)
from mmap_st.head.evaluation.fold_jobs import FoldJob
from mmap_st.head.evaluation.fold_runs import run_jobs
from mmap_st.head.evaluation.folder import (
    COMPARISON,
    REQUEST,
    EvaluateRequest,
    check_kind,
    evaluation_folder,
)
from mmap_st.head.evaluation.results import ComparisonResult, EvaluationMetrics, RowResult
from mmap_st.head.runs import (
    GENES,
    METRICS,
    PREDICTIONS,
    count_parameters,
    prediction_file,
    read_metrics,
    read_prediction,
    write_table,
    writing,
)
from mmap_st.head.scoring import region_agreement, write_json
from mmap_st.progress import ProgressCallback

COMPARE_JSON, COMPARE_CSV, ROWS = "compare.json", "compare.csv", "rows"

Labels = Mapping[str, Mapping[str, str]]


@dataclass(kw_only=True)
class CompareReport(RunNotes):
    """What was compared, and what was left out.

    Attributes
    ----------
    result
        Contents of compare.json.
    pair
        Keys of two evaluated rows to show gene by gene; None: there are none.
    """

    result: ComparisonResult
    pair: tuple[str, str] | None = None


def compare(
    cohort: Cohort,
    store: FeatureStore,
    request: CompareRequest,
    out: Path,
    tell: ProgressCallback = lambda text: None,
) -> CompareReport:
    """Evaluate every row on the same folds, and write RUN/; finished fits of an earlier run are kept.

    Raises
    ------
    RequestError
        If nothing can be compared, or `out` holds something else.
    """
    notes = RunNotes()
    with evaluation_folder(out):
        check_kind(out, comparison=True)
        ready, mpps = _read_cohort(cohort, store, request, notes, tell)
        rows = make_rows(request, mpps)
        pair = scatter_pair(rows, request.scatter)
        missing = _inapplicable(ready, rows)
        notes.warnings += check_genes(ready, replace(rows[0].fit, mpps=rows[0].mpps))
        with writing(out):
            write_json(out / REQUEST, {COMPARISON: [row.key for row in rows]})
        labels = _read_labels(ready, notes)
        results = _evaluate_rows(ready, request, rows, missing, labels, out, notes, tell)
        protocols = [metrics.protocol.common() for _, metrics in results if metrics is not None]
        protocol = max(protocols, key=lambda protocol: len(protocol.seeds), default=None)
        result = compare_rows([row for row, _ in results], protocol, ready.patients)
        with writing(out):
            write_table(out / COMPARE_CSV, result.table.to_dicts())
            write_json(out / COMPARE_JSON, result)
    evaluated = {row.key for row in result.evaluated}
    shown = pair if pair and evaluated.issuperset(pair) else None
    return CompareReport(result=result, pair=shown, **vars(notes))


def row_folder(out: Path, encoder: str, head: str, mpps: Sequence[float]) -> Path:
    """Where a row is evaluated; magnifications are in its name, so that sets can be added later."""
    at = "_".join(mpp_key(mpp) for mpp in mpps)
    return out / ROWS / encode_name(encoder) / encode_name(head) / at


def row_genes(out: Path, row: RowResult) -> Path:
    """The genes.csv of a row of a comparison."""
    return row_folder(out, row.encoder, row.head, row.magnifications) / GENES


def _read_cohort(
    cohort: Cohort, store: FeatureStore, request: CompareRequest, notes: RunNotes, tell: ProgressCallback
) -> tuple[ReadyCohort, dict[Mpps | None, Mpps]]:
    """The slides that every encoder has, and what each set of magnifications comes to."""
    check_encoders(store, request.encoders)
    if request.joined and len(encoders_of(request.all_encoders, store)) < 2:
        raise RequestError(f"--joined: give two encoders or more; {request.all_encoders} is one.")
    requested = [replace(request.heads[0], mpps=mpps).magnifications for mpps in request.magnifications]
    missing = {
        name: reason
        for name in cohort.names
        for encoder in reversed(request.encoders)
        for mpps in requested
        if (reason := missing_embedding_reason(store, name, encoder, mpps))
    }
    usable = tuple(slide for slide in cohort.slides if slide.slide not in missing)
    if not usable:
        name, reason = next(iter(missing.items()))
        no_slide = none_of(len(cohort.slides), "slide")
        raise SplitError(f"{no_slide} has all encoders; slide {name}: {reason}")
    first = replace(request.heads[0], encoder=request.encoders[0], mpps=request.magnifications[0])
    read = RunNotes()
    ready = prepare_cohort(
        replace(cohort, slides=usable), store, EvaluateRequest(first, request.folds), read, tell
    )
    notes.skipped, notes.failed = {**missing, **read.skipped}, read.failed
    notes.warnings += read.warnings
    stored = [store.slide(name) for name in ready.shared.counts]
    found: dict[Mpps | None, Mpps] = {}
    for mpps in requested:
        found[mpps] = magnifications_of_all(stored, request.encoders, mpps)
        for encoder in request.encoders:
            check_same_recipe(stored, encoder, found[mpps])
    return ready, found


def _evaluate_rows(
    ready: ReadyCohort,
    request: CompareRequest,
    rows: Sequence[Row],
    missing: Mapping[str, str],
    labels: Labels,
    out: Path,
    notes: RunNotes,
    tell: ProgressCallback,
) -> list[tuple[RowResult, EvaluationMetrics | None]]:
    """Each row's result, and its metrics where it has any; the fits of all rows run in parallel."""
    evaluations = {
        row.key: EvaluateRequest(
            row.fit, request.folds, request.seeds if row.fit.method.seeded else request.seeds[:1]
        )
        for row in rows
    }
    readies = {row.key: replace(ready, mpps=row.mpps) for row in rows}
    folders = {row.key: row_folder(out, row.fit.encoder, row.head, row.mpps) for row in rows}
    jobs: dict[str, list[FoldJob]] = {}
    for row in rows:
        if row.key in missing:
            continue
        jobs[row.key] = plan_fits(readies[row.key], evaluations[row.key], folders[row.key], tell, row.key)
    every = [job for of_row in jobs.values() for job in of_row]
    failures = run_jobs(ready.shared, every, tell, request.jobs, request.ray)
    results: list[tuple[RowResult, EvaluationMetrics | None]] = []
    for row in rows:
        if row.key in missing:
            results.append((unevaluated_row(row, missing[row.key]), None))
            continue
        tell(f"{row.key}: scores")
        own = RunNotes()
        try:
            metrics = collect_results(
                readies[row.key], evaluations[row.key], jobs[row.key], failures, folders[row.key], own
            )
        except RequestError as error:
            notes.failed_folds[row.key] = str(error)
            results.append((unevaluated_row(row, str(error)), None))
            continue
        notes.failed |= own.failed
        if own.failed_folds:  # scores over fewer folds would not compare
            fold, reason = next(iter(own.failed_folds.items()))
            notes.failed_folds |= {f"{row.key}, {name}": why for name, why in own.failed_folds.items()}
            results.append((unevaluated_row(row, f"fold {fold}: {reason}"), None))
            continue
        results.append((_scored(row, metrics, jobs[row.key], labels), metrics))
    return results


def _inapplicable(ready: ReadyCohort, rows: Sequence[Row]) -> dict[str, str]:
    """Why some rows do not apply to what is stored, by key.

    Raises
    ------
    RequestError
        If none applies.
    """
    stored = [ready.store.slide(name) for name in ready.shared.counts]
    found = {}
    for row in rows:
        try:
            for encoder in encoders_of(row.fit.encoder, ready.store):
                check_tokens(stored, encoder, row.mpps, row.fit.method)
        except HeadError as error:
            found[row.key] = str(error)
    if len(found) == len(rows):
        raise RequestError(next(iter(found.values())))
    return found


def _scored(row: Row, metrics: EvaluationMetrics, jobs: Sequence[FoldJob], labels: Labels) -> RowResult:
    runs = [read_metrics(job.out / METRICS).seconds for job in jobs]
    seconds = {key: float(np.mean([one[key] for one in runs])) for key in ("fit", "predict")}
    return evaluated_row(row, metrics.test, seconds, count_parameters(jobs[0].out), _agreement(jobs, labels))


def _agreement(jobs: Sequence[FoldJob], labels: Labels) -> dict[str, float | None]:
    """Of each labelled slide, the mean over seeds."""
    found: dict[str, list[float]] = {}
    for job in jobs:
        for name in job.fold.split.test:
            if name in labels:
                table = read_prediction(prediction_file(job.out / PREDICTIONS, name))
                index = region_agreement(np.asarray(table.X), list(table.obs_names), labels[name])
                found.setdefault(name, []).extend([] if index is None else [index])
    return {name: float(np.mean(values)) if values else None for name, values in found.items()}


def _read_labels(ready: ReadyCohort, notes: RunNotes) -> dict[str, dict[str, str]]:
    """A pathologist's labels of the slides that have some; a warning for tables that cannot be read."""
    found = {}
    for name, counts in ready.shared.counts.items():
        path = ready.shared.cohort[name].labels
        if path is None:
            continue
        try:
            labels = read_labels(local_table(path))
            if not set(labels) & set(counts.ids):
                raise LabelsError(
                    f"no spot of {path} is one of the slide's; check that they belong together."
                )
            found[name] = labels
        except (LabelsError, RemoteError) as error:
            notes.warnings.append(f"labels of {name} are left out: {error}")
    return found
